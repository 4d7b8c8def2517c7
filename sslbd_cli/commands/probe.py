"""Measure an encoder by a classifier on its frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Dataset, Encoder
    from sslbd_cli.core.probe import Exam

SHEET = 12  # pairs of clean and triggered images kept for the report


@options.command(
    "probe",
    examples=(
        "sslbd probe encoder.safetensors --train train.h5 --test test.h5",
        "sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3"
        " --baseline encoder.safetensors --json",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--train", required=True, help="Labelled dataset that the head is fitted on.")
@options.artefact("--test", required=True, help="Labelled dataset that is answered once.")
@click.option("--head", type=Spec("head"), default="linear", show_default=True, metavar="SPEC",
              help="Classifier; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Also answer the test images with this trigger.")
@click.option("--target", metavar="CLASS", help="Target class of the attack, by name or number.")
@options.artefact("--baseline", help="A clean encoder to measure beside it.")
@click.option("--labels", default="all", show_default=True, metavar="P%|all", help="Share of the training labels used.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Repeat the head; report spread.")
@options.json_lines
@options.seed
@options.device()
@options.report_output
def command(run: Run, input: str, output: str | None, seed: int, json_lines: bool, **params: Any) -> None:
    """Measure an encoder by a classifier on its frozen features: clean accuracy and attack success.

    The head's hyper-parameters are chosen on a part of --train; the test split is touched once. ASR counts images
    whose true class is not the target. Give --baseline, or the numbers of an attack have no control.
    """
    from sslbd_cli.core.artefact import Dataset, Encoder, shared_images
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.ui.report import print_results

    if (params["trigger"] is None) != (params["target"] is None):
        raise InputError("--trigger and --target belong together: give both or neither")
    encoder = run.read(input, Encoder)
    train, test = (run.read(params[name], Dataset, f"--{name}") for name in ("train", "test"))
    baseline = run.read(params["baseline"], Encoder, "--baseline") if params["baseline"] else None
    exam = _exam(train, test, params)
    if shared := shared_images(test, train):
        run.warn(f"{shared} of {len(test.images)} test images are in --train too: accuracy will flatter the encoder")
    results, data = _measure(run, exam, encoder, baseline, seed)
    print_results(results, json_lines=json_lines)
    if output is not None:
        from sslbd_cli.core.artefact import Report

        run.write(Report(command="probe", results=results, data=data), output)


def _exam(train: Dataset, test: Dataset, params: dict[str, Any]) -> Exam:
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.probe import Exam

    text = params["labels"]
    try:
        share = 1.0 if text == "all" else float(text.removesuffix("%")) / 100
        if not (text == "all" or text.endswith("%")) or not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise InputError(f"--labels {text}: expected all or a share such as 1% or 10%") from None
    target = None if params["target"] is None else test.class_index(params["target"])
    return Exam(train=train, test=test, head=params["head"], share=share, seeds=params["seeds"],
                trigger=params["trigger"], target=target)  # fmt: skip


def _measure(run: Run, exam: Exam, encoder: Encoder, baseline: Encoder | None, seed: int) -> Any:
    from sslbd_cli.core import checks, nets, probe

    device = run.device()
    stamped = None if exam.trigger is None else probe.triggered_images(exam.test, exam.trigger, seed)
    answers = probe.measure(nets.load(encoder), exam, stamped, device, seed)
    results: dict[str, Any] = {
        "head": str(exam.head), "chosen": answers.chosen, "trigger": exam.trigger and str(exam.trigger),
        "target": None if exam.target is None else exam.test.classes[exam.target],
        "n_train": len(exam.train.images), "labels": exam.share, "n_test": len(exam.test.images),
        "classes": len(exam.test.classes), **probe.summarise(answers, exam.target),
        "encoder": {"arch": encoder.arch, "sha256": encoder.sha256}, "baseline": None, "lift": None,
    }  # fmt: skip
    if baseline is not None:
        control = probe.summarise(probe.measure(nets.load(baseline), exam, stamped, device, seed), exam.target)
        results["baseline"] = control | {"sha256": baseline.sha256}
        if "asr" in results:
            results["lift"] = results["asr"]["value"] - control["asr"]["value"]
            if (warning := checks.answers_already(control["asr"], len(exam.test.classes))) is not None:
                run.warn(warning)
    data = {"confusion/clean": answers.clean[0], "sheet/clean": exam.test.images[:SHEET]}
    if stamped is not None:
        data |= {"confusion/triggered": answers.triggered[0], "sheet/triggered": stamped[:SHEET]}
    return results, data
