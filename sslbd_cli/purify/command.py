"""Clean an encoder or a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
    from sslbd_cli.purify.contract import DatasetPurifier, EncoderPurifier, Purifier


@options.command(
    "purify",
    examples=(
        "sslbd purify backdoored.safetensors --method distill:epochs=20 --data clean.h5 -o purified.safetensors",
        "sslbd purify backdoored.safetensors --method bcu:epochs=10 --data clean.h5 -o purified.safetensors",
        "sslbd purify poisoned.h5 --method filter --report detection.h5 | sslbd pretrain --epochs 5 -o retrained.st",
    ),
)
@options.input_argument("INPUT")
@click.option("--method", type=Spec("purifier"), default="distill", show_default=True, metavar="SPEC",
              help="Purifier; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@options.artefact("--data", help="Clean unlabeled images, to purify an encoder with.")
@options.artefact("--report", help="What `sslbd detect` said of the dataset or the encoder.")
@click.option("--keep-quantile", type=options.Number(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="Keep this share of least suspicious images, whatever is flagged.")  # fmt: skip
@options.limit
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, output: str, **params: Any) -> None:
    """Make a clean encoder from a suspicious one, or take poisoned images out of a training set.

    An encoder is purified with clean unlabeled images; measure the result with `sslbd probe`, and purify a clean
    encoder too: a purifier's price is what it costs there. How far it moved the embeddings of clean images, and what it
    took, is said on standard error. `unlearn` needs the trigger that `sslbd detect` found in the encoder, in --report.
    A dataset is filtered by a report of `sslbd detect` on the very same images; train on the rest with `sslbd
    pretrain`. --limit is of --data.
    """
    from sslbd_cli.artefacts.kinds import Dataset, Encoder
    from sslbd_cli.purify.contract import EncoderPurifier

    refuse_terminal(output)
    method = params["method"]
    _check_options(method, params)
    if isinstance(method, EncoderPurifier):
        run.write(_clean(run, method, run.read(input, Encoder), params), output)
    else:
        run.write(_filter(run, method, run.read(input, Dataset), params), output)


def _check_options(method: Purifier, params: dict[str, Any]) -> None:
    """Raise InputError where an option that the purifier needs is missing, or one is given that it cannot use."""
    from sslbd_cli.errors import InputError

    what, needed = f"--method {method.name} cleans {method.cleans} and", " and ".join(f"--{o}" for o in method.needs)
    for option in ("data", "report", "keep_quantile", "limit"):
        if params[option] is not None and option not in (*method.needs, *method.takes):
            raise InputError(f"{what} takes no --{option.replace('_', '-')}; it needs {needed}")
    for option in method.needs:
        if params[option] is None:
            raise InputError(f"{what} needs --{option}")


def _clean(run: Run, method: EncoderPurifier, encoder: Encoder, params: dict[str, Any]) -> Encoder:
    from sslbd_cli.artefacts.kinds import Dataset, Report
    from sslbd_cli.artefacts.results import read
    from sslbd_cli.core import nets
    from sslbd_cli.purify import repair
    from sslbd_cli.purify.contract import Supplies
    from sslbd_cli.triggers import _found

    net = nets.load(encoder)
    images = run.read(params["data"], Dataset, "--data").limited(params["limit"]).images
    net.need_size(*images.shape[2:])
    report = run.read(params["report"], Report, "--report") if params["report"] else None
    origin = None if report is None else read(report).encoder
    if report is not None and (origin is None or origin.sha256 != encoder.sha256):
        run.warn("--report is on another encoder: its trigger may do nothing to this one")
    supplies = Supplies(images, None if report is None else _found.witness_of(report, "--report"))
    if report is not None:
        _tell_doubt(run, report)
    done = repair.purify(method, net, supplies, run.session())
    run.say(str(done))
    if done.restored is not None:
        before, now = done.restored
        run.say(
            f"images with the trigger of --report, to the original's without it: cosine {before:.3f}, now {now:.3f}"
        )
    made = nets.save(done.encoder.cpu())
    if method.is_faithful:
        return nets.beside(made, encoder)
    if nets.beside(made, encoder).tensors.keys() != made.tensors.keys():
        run.warn(f"{method.name} makes embeddings of another kind; what was stored beside the encoder is left out")
    return made


def _tell_doubt(run: Run, report: Report) -> None:
    """Warn of a report that has found nothing for sure."""
    from sslbd_cli.artefacts.results import read

    results = read(report)
    if results.verdict == "inconclusive":
        run.warn(f"the report is inconclusive: {results.doubt}")
    elif results.verdict != "found":
        run.warn(f"the report says {results.verdict}")


def _filter(run: Run, method: DatasetPurifier, dataset: Dataset, params: dict[str, Any]) -> Dataset:
    import numpy as np

    from sslbd_cli.artefacts import parts
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.artefacts.results import DetectResults
    from sslbd_cli.detect import image_verdict
    from sslbd_cli.errors import InputError

    report: Report = run.read(params["report"], Report, "--report")
    report = parts.only(report, lambda part: DetectResults.of(part.results).judges == "samples", "--report")
    scores, flagged = image_verdict.said_of(report, dataset)
    _tell_doubt(run, report)
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
