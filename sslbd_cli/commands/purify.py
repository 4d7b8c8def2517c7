"""Clean an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.bases import Purifier


@options.command(
    "purify",
    examples=(
        "sslbd purify backdoored.safetensors --method distill:epochs=20 --data clean.h5 -o purified.safetensors",
        "sslbd purify backdoored.safetensors --method distill --data clean.h5 --limit 2000 | sslbd info",
    ),
)
@options.input_argument("ENCODER")
@click.option("--method", type=Spec("purifier"), default="distill", show_default=True, metavar="SPEC",
              help="Purifier; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@options.artefact("--data", required=True, help="Clean unlabeled images.")
@options.limit
@options.seed
@options.device()
@options.output
def command(
    run: Run, input: str, method: Purifier, data: str, limit: int | None, seed: int, output: str, **_: object
) -> None:
    """Make a clean encoder from a suspicious one, with clean unlabeled images.

    Measure the result with `sslbd probe`, and purify a clean encoder too: a purifier's price is what it costs there.
    """
    from sslbd_cli.core import nets
    from sslbd_cli.core.artefact import Dataset, Encoder
    from sslbd_cli.core.checks import not_collapsed
    from sslbd_cli.core.features import embed

    refuse_terminal(output)
    net = nets.load(run.read(input, Encoder))
    images = run.read(data, Dataset, "--data").images[:limit]
    net.need_size(*images.shape[2:])
    purified = method.clean(net, images, run.device(), seed, run.progress)
    not_collapsed(embed(purified, images[:2048], run.device()))
    run.write(nets.save(purified.cpu()), output)
