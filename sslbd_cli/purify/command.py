"""Clean an encoder or a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
    from sslbd_cli.purify.contract import DatasetPurifier, EncoderPurifier, Purifier
    from sslbd_cli.triggers._found import Witness


@options.command(
    "purify",
    examples=(
        "sslbd purify backdoored.safetensors --method distill:epochs=20 --data clean.h5 -o purified.safetensors",
        "sslbd purify backdoored.safetensors --method bcu:epochs=10 --data clean.h5 -o purified.safetensors",
        "sslbd purify clip.safetensors --method cleanclip:epochs=3,lr=1e-4 --data pairs.h5 -o purified.safetensors",
        "sslbd purify poisoned.h5 --method filter --report detection.h5 | sslbd pretrain --epochs 5 -o retrained.st",
    ),
)
@options.input_argument("INPUT")
@options.spec("purifier", "Purifier", default="distill")
@options.artefact("--data", help="Clean unlabeled images to purify an encoder with.")
@options.artefact("--report", help="Report of `sslbd detect` on the dataset or the encoder.")
@click.option("--keep-quantile", type=options.Number(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="Keep this share of least suspicious images; ignore the flags.")  # fmt: skip
@options.checkpoint
@options.limit
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, **params: Any) -> None:
    """Make a clean encoder from a suspicious one, or remove poisoned images from a training set.

    Purifying an encoder needs clean unlabeled images; cleanclip and par, which train both towers of a CLIP model, need
    their captions, too. Measure the result with `sslbd probe`. Purify a clean encoder,
    too: the accuracy that it loses is the purifier's price. Standard error shows how far clean embeddings moved and how
    long it took. If the embeddings became constant, the encoder is still written, and the exit status is 3. `unlearn`
    needs --report with the trigger that `sslbd detect` found in the encoder. A dataset is filtered by a report of
    `sslbd detect` on the very same images; train on the rest with `sslbd pretrain`. --limit applies to --data. --resume
    continues an interrupted training; it ends with the same bytes as an uninterrupted one.
    """
    from sslbd_cli.artefacts.kinds import Dataset, Encoder
    from sslbd_cli.purify.contract import EncoderPurifier

    refuse_terminal(params["output"])
    method = params["method"]
    _check_options(method, params)
    run.claim_checkpoint()
    if isinstance(method, EncoderPurifier):
        _clean(run, method, run.read(input, Encoder), params)
    else:
        run.write(_filter(run, method, run.read(input, Dataset), params), params["output"])


def _check_options(method: Purifier, params: dict[str, Any]) -> None:
    """Raise InputError if an option that the purifier needs is missing, or if it cannot use an option."""
    from sslbd_cli.errors import InputError

    what, needed = f"--method {method.name} cleans {method.cleans} and", " and ".join(f"--{o}" for o in method.needs)
    for option in ("data", "report", "keep_quantile", "limit", "checkpoint", "resume"):
        if params[option] not in (None, False) and option not in (*method.needs, *method.takes):
            raise InputError(f"{what} takes no --{option.replace('_', '-')}; it needs {needed}")
    for option in method.needs:
        if params[option] is None:
            raise InputError(f"{what} needs --{option}")


def _clean(run: Run, method: EncoderPurifier, encoder: Encoder, params: dict[str, Any]) -> None:
    """Purify an encoder and write it, then compare it with the original.

    It is written first, so that nothing that happens to the comparison can lose it.
    """
    from sslbd_cli.artefacts.captions import decode
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.core import nets
    from sslbd_cli.language.tower import load_joint
    from sslbd_cli.purify import repair
    from sslbd_cli.purify.contract import Supplies

    net = nets.load(encoder)
    dataset = run.read(params["data"], Dataset, "--data").limited(params["limit"])
    images, captions = dataset.images, None
    net.need_size(*images.shape[2:])
    if method.reads_captions:
        load_joint(net, encoder)
        captions = decode(dataset.need_captions(f"--method {method.name}"))
    witness = _witness(run, encoder, params["report"])
    session = run.session()
    supplies = Supplies(images, witness, run.checkpoint(), captions)
    cleaned = repair.purify(method, net, supplies, session)
    run.write(_beside(run, method, nets.save(cleaned.encoder.cpu()), encoder), params["output"])
    change = repair.compare(net, cleaned.encoder, supplies, session)
    run.say(f"{cleaned}; {change}")
    if change.restored is not None:
        before, now = change.restored
        run.say(f"triggered images against the original's clean ones: cosine {before:.3f}, now {now:.3f}")


def _witness(run: Run, encoder: Encoder, path: str | None) -> Witness | None:
    """Read the trigger that a report found. Warn if it is of another encoder, or if the report is in doubt."""
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.artefacts.results import read
    from sslbd_cli.triggers import _found

    if path is None:
        return None
    report = run.read(path, Report, "--report")
    origin = read(report).encoder
    if origin is None or origin.sha256 != encoder.sha256:
        run.warn("--report is on another encoder; its trigger may have no effect on this one")
    witness = _found.witness_of(report, "--report")
    _tell_doubt(run, report)
    return witness


def _beside(run: Run, method: EncoderPurifier, purified: Encoder, encoder: Encoder) -> Encoder:
    """Return the purified encoder with the parts of the original that still fit."""
    from sslbd_cli.core import nets

    if method.reads_captions:
        return purified
    if method.is_faithful:
        return nets.beside(purified, encoder)
    if nets.beside(purified, encoder).tensors.keys() != purified.tensors.keys():
        run.warn(f"{method.name} makes new embeddings; the parts stored beside the encoder are left out")
    return purified


def _tell_doubt(run: Run, report: Report) -> None:
    """Warn if a report has not found anything for certain."""
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
    scores, flagged = image_verdict.read_scores(report, dataset)
    _tell_doubt(run, report)
    remaining = method.keep(scores, flagged, params["keep_quantile"])
    if not remaining.any():
        few = params["keep_quantile"] is not None
        why = "--keep-quantile keeps less than one" if few else "the report flags every"
        raise InputError(f"nothing would be left: {why} image")
    poison_note = ""
    if dataset.truth is not None and dataset.truth.poisoned.any():
        left, total = int(dataset.truth.poisoned[remaining].sum()), int(dataset.truth.poisoned.sum())
        poison_note = f"; of {total} recorded poisons {left} are left"
    run.say(f"took {int((~remaining).sum())} of {len(remaining)} images out{poison_note}")
    return dataset.take(np.flatnonzero(remaining))
