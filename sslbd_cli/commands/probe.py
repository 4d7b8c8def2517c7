"""Measure an encoder by a classifier on its frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options, probing
from sslbd_cli.ui.run import Run
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Dataset, Encoder
    from sslbd_cli.core.features import Layer
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.core.probe import Exam

SHEET = 12  # pairs of clean and triggered images kept for the report


@options.command(
    "probe",
    examples=(
        "sslbd probe encoder.safetensors --train train.h5 --test test.h5",
        "sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3"
        " --baseline encoder.safetensors --json",
        "sslbd probe encoder.safetensors --train train.h5 --test test.h5 --head compress --labels 10%",
        "sslbd probe clip.safetensors --head zeroshot --text texts.h5 --test test.h5",
        "sslbd probe local.safetensors --train train.h5 --test test.h5 --certify patchguard:size=5",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--train", help="Labelled dataset that the head is fitted on.")
@options.artefact("--text", help="Features of texts on the classes, for --head zeroshot instead of --train.")
@options.artefact("--test", required=True, help="Labelled dataset that is answered once.")
@click.option("--head", type=Spec("head"), default="linear", show_default=True, metavar="SPEC",
              help="Classifier; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Also answer the test images with this trigger.")
@click.option("--target", metavar="CLASS", help="Target class of the attack, by name or number.")
@options.artefact("--target-of", help="Poisoned dataset: its target is the class that most poisoned images are of.")
@options.artefact("--baseline", help="A clean encoder to measure beside it.")
@click.option("--labels", default="all", show_default=True, metavar="P%|all",
              help="Share of the training labels used, drawn from every class.")  # fmt: skip
@click.option("--layer", "names", multiple=True, metavar="NAME|all",
              help="Probe an inner layer instead of the embedding; may be repeated.")  # fmt: skip
@click.option("--pool", default=0, show_default=True, type=click.IntRange(0), metavar="SIDE",
              help="Cells of the grid that a layer's maps are averaged on; 0 makes about 9216 numbers.")  # fmt: skip
@click.option("--certify", type=Spec("certificate"), metavar="SPEC",
              help="Also certify a defended classifier, such as patchguard:size=5.")  # fmt: skip
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Repeat the head; report spread.")
@options.json_lines
@options.seed
@options.device()
@options.report_output
def command(run: Run, input: str, output: str | None, seed: int, json_lines: bool, **params: Any) -> None:
    """Measure an encoder by a classifier on its frozen features: clean accuracy and attack success.

    The head's hyper-parameters are chosen on a part of --train; the test split is touched once. ASR counts images
    whose true class is not the target. Give --baseline, or the numbers of an attack have no control; for a purified
    encoder, the original as --baseline tells how far its embeddings moved. For encoders that learned from captions,
    --head zeroshot answers by texts, which `sslbd embed --prompt` makes. --certify needs an encoder whose locations see
    small parts of an image (--arch tinybag or bagnet).
    """
    from sslbd_cli.core.artefact import Dataset, Encoder, shared_images
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.probe import Exam, parse_share
    from sslbd_cli.ui.report import print_results

    if params["target"] is not None and params["target_of"] is not None:
        raise InputError("--target and --target-of both name the target: give one of them")
    probing.check(params)
    encoder = run.read(input, Encoder)
    train = run.read(params["train"], Dataset, "--train") if params["train"] else None
    test = run.read(params["test"], Dataset, "--test")
    baseline = run.read(params["baseline"], Encoder, "--baseline") if params["baseline"] else None
    encoders = [encoder] if baseline is None else [encoder, baseline]
    target, consistency = _target(run, test, params)
    nets = [probing.loaded(each, params["head"]) for each in encoders]
    learned = train or probing.texts(run, params["text"], test, encoders)
    exam = Exam(train=learned, test=test, head=params["head"], share=parse_share(params["labels"]),
                seeds=params["seeds"], trigger=params["trigger"], target=target)  # fmt: skip
    if train and (shared := shared_images(test, train)):
        run.warn(f"{shared} of {len(test.images)} test images are in --train too: accuracy will flatter the encoder")
    results, data = _measure(run, exam, list(zip(encoders, nets, strict=True)), params, seed)
    results |= {} if consistency is None else {"consistency": consistency}
    print_results(results, json_lines=json_lines)
    if output is not None:
        from sslbd_cli.core.artefact import Report

        run.write(Report(command="probe", results=results, data=data), output)


def _target(run: Run, test: Dataset, params: dict[str, Any]) -> tuple[int | None, float | None]:
    """Return the target and, where a poisoned dataset names it, the share of its poisoned images that are of it."""
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.probe import emergent_target

    name, source = params["target"], params["target_of"]
    target, share = (None if name is None else test.class_index(name)), None
    if source is not None:
        target, share = emergent_target(run.read(source, Dataset, "--target-of"), test)
        run.say(f"target {test.classes[target]}: {share:.1%} of the poisoned images are of it")
    if (params["trigger"] is None) != (target is None):
        raise InputError("--trigger and --target belong together: give both or neither")
    if params["certify"] is not None and params["names"]:
        raise InputError("--certify works on the local features behind the embedding: leave --layer out")
    if params["pool"] and not params["names"]:
        raise InputError("--pool is for inner layers: give --layer too")
    return target, share


def _measure(run: Run, exam: Exam, pairs: list[tuple[Encoder, ImageEncoder]], params: dict[str, Any], seed: int) -> Any:
    """Measure the encoder, and the clean one if there are two, on the embedding or on each layer asked for."""
    from sslbd_cli.core import certify, features, probe

    encoders, loaded = zip(*pairs, strict=True)
    layers: list[Layer | None] = [None]
    if params["names"]:
        names = [features.find_layers(net, params["names"]) for net in loaded]
        layers = [features.Layer(name, params["pool"]) for name in names[0]]
    device = run.device()
    stamped = None if exam.trigger is None else probe.triggered_images(exam.test, exam.trigger, seed)
    proofs = []
    if params["certify"] is not None:  # first: it may refuse the encoder
        proofs = [
            certify.certified(net, exam, params["certify"], stamped, device, run.progress, seed) for net in loaded
        ]
    rows, data = [], {"sheet/clean": exam.test.images[:SHEET]}
    if stamped is not None:
        data["sheet/triggered"] = stamped[:SHEET]
    for layer in layers:
        answers = [probe.measure(net, exam, stamped, device, seed, layer) for net in loaded]
        row = {"layer": layer and layer.name} | probe.compare(answers, exam)
        rows.append(row)
        for doubt in probe.doubts(answers, exam):
            run.warn(doubt if layer is None else f"{layer.name}: {doubt}")
        prefix = f"{layer.name}/" if layer is not None and len(layers) > 1 else ""
        data |= {prefix + name: array for name, array in probe.evidence(answers).items()}
    results: dict[str, Any] = {
        "head": str(exam.head), "trigger": exam.trigger and str(exam.trigger),
        "target": None if exam.target is None else exam.test.classes[exam.target],
        **probing.learned(exam),
        "n_test": len(exam.test.images), "classes": len(exam.test.classes),
        "encoder": {"arch": encoders[0].arch, "sha256": encoders[0].sha256},
    }  # fmt: skip
    results |= rows[0] if len(rows) == 1 else {"layers": rows, "baseline": None}
    if proofs:
        results["certify"] = proofs[0] | ({"baseline": proofs[1]} if len(proofs) > 1 else {})
    if len(encoders) > 1:
        results["baseline"] = (results["baseline"] or {}) | {"sha256": encoders[1].sha256}
    return results, data
