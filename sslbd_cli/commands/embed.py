"""Embed a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.bases import Trigger


@options.command(
    "embed",
    examples=(
        "sslbd embed encoder.safetensors --data test.h5 -o features.h5",
        "sslbd embed encoder.safetensors --data test.h5 --trigger patch | sslbd info",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--data", required=True, help="Dataset to embed.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Stamp every image first.")
@options.limit
@options.seed
@options.device(batch=1024)
@options.output
def command(
    run: Run, input: str, data: str, trigger: Trigger | None, limit: int | None, seed: int, output: str, batch: int,
    **_: object,
) -> None:  # fmt: skip
    """Embed the images of a dataset by an encoder: features float32 N,D, with the labels if there are any."""
    from sslbd_cli.core import nets, probe
    from sslbd_cli.core.artefact import Dataset, Encoder, Features
    from sslbd_cli.core.features import embed

    refuse_terminal(output)
    encoder = run.read(input, Encoder)
    dataset = run.read(data, Dataset, "--data")
    net, device = nets.load(encoder), run.device()
    images = dataset.images[:limit]
    if trigger is not None:
        images = probe.triggered_images(dataset, trigger, seed)[:limit]
    feats = embed(net, images, device, batch=batch).cpu().numpy()
    labels = None if dataset.labels is None else dataset.labels[:limit]
    run.write(Features(feats=feats, labels=labels, classes=dataset.classes), output)
