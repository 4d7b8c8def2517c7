"""Clean an encoder or a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Dataset, Encoder, Report
    from sslbd_cli.core.bases import DatasetPurifier, EncoderPurifier


@options.command(
    "purify",
    examples=(
        "sslbd purify backdoored.safetensors --method distill:epochs=20 --data clean.h5 -o purified.safetensors",
        "sslbd purify poisoned.h5 --method filter --report detection.h5 | sslbd pretrain --epochs 5 -o retrained.st",
    ),
)
@options.input_argument("INPUT")
@click.option("--method", type=Spec("purifier"), default="distill", show_default=True, metavar="SPEC",
              help="Purifier; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@options.artefact("--data", help="Clean unlabeled images, to purify an encoder with.")
@options.artefact("--report", help="What `sslbd detect` said of the dataset, to filter it by.")
@click.option("--keep-quantile", type=options.Number(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="Keep this share of least suspicious images, whatever is flagged.")  # fmt: skip
@options.limit
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, output: str, **params: Any) -> None:
    """Make a clean encoder from a suspicious one, or take poisoned images out of a training set.

    An encoder is purified with clean unlabeled images; measure the result with `sslbd probe`, and purify a clean
    encoder too: a purifier's price is what it costs there. A dataset is filtered by a report of `sslbd detect` on the
    very same images; train on the rest with `sslbd pretrain`. --limit is of --data.
    """
    from sslbd_cli.core.artefact import Dataset, Encoder
    from sslbd_cli.core.bases import EncoderPurifier

    refuse_terminal(output)
    method = params["method"]
    cleans_encoder = isinstance(method, EncoderPurifier)
    _check_options(method.name, cleans_encoder, params)
    if cleans_encoder:
        run.write(_clean(run, method, run.read(input, Encoder), params), output)
    else:
        run.write(_filter(run, method, run.read(input, Dataset), params), output)


def _check_options(name: str, cleans_encoder: bool, params: dict[str, Any]) -> None:
    from sslbd_cli.core.errors import InputError

    wanted, others = ("data", ("report", "keep_quantile")) if cleans_encoder else ("report", ("data", "limit"))
    subject = "an encoder" if cleans_encoder else "a dataset"
    for other in others:
        if params[other] is not None:
            option = other.replace("_", "-")
            raise InputError(f"--method {name} cleans {subject} and takes no --{option}; it needs --{wanted}")
    if params[wanted] is None:
        raise InputError(f"--method {name} cleans {subject} and needs --{wanted}")


def _clean(run: Run, method: EncoderPurifier, encoder: Encoder, params: dict[str, Any]) -> Encoder:
    from sslbd_cli.core import nets
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.checks import not_collapsed
    from sslbd_cli.core.features import embed

    net = nets.load(encoder)
    images = run.read(params["data"], Dataset, "--data").images[: params["limit"]]
    net.need_size(*images.shape[2:])
    purified = method.clean(net, images, run.device(), params["seed"], run.progress)
    not_collapsed(embed(purified, images[:2048], run.device()))
    return nets.save(purified.cpu())


def _filter(run: Run, method: DatasetPurifier, dataset: Dataset, params: dict[str, Any]) -> Dataset:
    import numpy as np

    from sslbd_cli.core import detect
    from sslbd_cli.core.artefact import Report
    from sslbd_cli.core.errors import InputError

    report: Report = run.read(params["report"], Report, "--report")
    scores, flagged = detect.said_of(report, dataset)
    kept = method.keep(scores, flagged, params["keep_quantile"])
    if not kept.any():
        few = params["keep_quantile"] is not None
        why = "--keep-quantile keeps less than one" if few else "the report flags every"
        raise InputError(f"nothing would be left: {why} image")
    told = ""
    if dataset.truth is not None and dataset.truth.poisoned.any():
        left, total = int(dataset.truth.poisoned[kept].sum()), int(dataset.truth.poisoned.sum())
        told = f"; of {total} recorded poisons {left} are left"
    run.say(f"took {int((~kept).sum())} of {len(kept)} images out{told}")
    return dataset.take(np.flatnonzero(kept))
