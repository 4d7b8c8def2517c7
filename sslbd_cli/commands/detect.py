"""Look for a backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Dataset, Encoder, Report
    from sslbd_cli.core.detect import Case


@options.command(
    "detect",
    examples=(
        "sslbd detect backdoored.safetensors --method dede --data test.h5 --aux clean.h5 --trigger patch"
        " --baseline encoder.safetensors -o detection.h5",
        "sslbd detect backdoored.safetensors --method poisoncam --data poisoned.h5 -o detection.h5",
    ),
)
@options.input_argument("ENCODER")
@click.option("--method", type=Spec("detector"), default="dede", show_default=True, metavar="SPEC",
              help="Detector; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@options.artefact("--data", required=True, help="Images to judge.")
@options.artefact("--aux", help="Other unlabeled images, held to be clean, to learn and calibrate on; for inputs.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC",
              help="Judge --data with this trigger too, to measure a detector of inputs; it is not told.")  # fmt: skip
@options.artefact("--baseline", help="A clean encoder to judge the same images by.")
@click.option("--alpha", default=0.05, show_default=True, type=options.Number(0, 0.5, min_open=True),
              help="Share of clean inputs that may be flagged.")  # fmt: skip
@click.option("--exit-code", is_flag=True, help="Exit 1 where a backdoor is found.")
@options.json_lines
@options.limit
@options.seed
@options.device()
@options.report_output
def command(run: Run, input: str, output: str | None, json_lines: bool, exit_code: bool, **params: Any) -> None:
    """Look for a backdoor, and say how far the answer can be trusted.

    The verdict is found, nothing found (within the search space named) or inconclusive (exit 3); never clean. Detectors
    of inputs judge images that the encoder is given: the threshold is set on a part of --aux that the detector did not
    learn from. Detectors of samples judge the training set itself and need no other images; `sslbd purify --method
    filter` takes out what they flag. Truth recorded in --data, or known from --trigger, is used only afterwards, to
    measure. --limit is of --data.
    """
    from sslbd_cli.core.artefact import Dataset, Encoder, shared_images
    from sslbd_cli.core.errors import Unsound
    from sslbd_cli.ui.report import print_results

    encoder = run.read(input, Encoder)
    _check_options(run, params)
    data = run.read(params["data"], Dataset, "--data")
    aux = run.read(params["aux"], Dataset, "--aux") if params["aux"] else None
    baseline = run.read(params["baseline"], Encoder, "--baseline") if params["baseline"] else None
    case = _case(encoder, baseline, data, aux, params)
    if aux is not None and (shared := shared_images(data, aux)):
        run.warn(f"{shared} of {len(data.images)} images of --data are in --aux too, which is held to be clean")
    report, doubt = _detect(run, case, (encoder, baseline, data), params)
    print_results(report.results, json_lines=json_lines)
    if output is not None:
        run.write(report, output)
    if doubt:
        raise Unsound(f"inconclusive: {doubt}")
    if exit_code and report.results["verdict"] == "found":
        raise click.exceptions.Exit(1)


def _check_options(run: Run, params: dict[str, Any]) -> None:
    """Raise InputError where options do not belong to what the detector judges."""
    from click.core import ParameterSource

    from sslbd_cli.core.errors import InputError

    method = params["method"]
    if method.flags == "inputs" and not params["aux"]:
        raise InputError(f"--method {method.name} judges inputs against images held to be clean: give them as --aux")
    if method.flags == "samples":
        given = [f"--{name}" for name in ("aux", "trigger", "alpha")
                 if run.ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)]  # fmt: skip
        if given:
            raise InputError(
                f"--method {method.name} judges a training set by itself and takes no {' or '.join(given)}"
            )


def _case(
    encoder: Encoder, baseline: Encoder | None, data: Dataset, aux: Dataset | None, params: dict[str, Any]
) -> Case:
    import numpy as np

    from sslbd_cli.core import detect
    from sslbd_cli.core.errors import InputError

    for option, dataset in (("--data", data), ("--aux", aux)):
        if dataset is not None and dataset.images.shape[2:] != (encoder.size, encoder.size):
            side = encoder.size
            raise InputError(
                f"{option} holds {dataset.extent} images, the encoder takes {side}x{side}; make them with --size {side}"
            )
    if baseline is not None and baseline.size != encoder.size:
        raise InputError(f"--baseline takes images of {baseline.size} pixels, the encoder of {encoder.size}")
    chosen = data.take(np.arange(len(data.images))[: params["limit"]])
    if aux is None:
        return detect.make_samples_case(chosen, params["method"])
    detect.need_calibration(params["method"], len(aux.images), params["alpha"])
    return detect.make_case(chosen, aux, params["trigger"], params["alpha"], params["seed"])


def _detect(
    run: Run, case: Case, given: tuple[Encoder, Encoder | None, Dataset], params: dict[str, Any]
) -> tuple[Report, str]:
    """Run the detector, on the clean encoder too, and gather the report; the second value says why it is in doubt."""
    from sslbd_cli.core import detect, nets
    from sslbd_cli.core.artefact import Report

    (encoder, baseline, data), method, seed = given, params["method"], params["seed"]
    ruling = detect.judge(method, nets.load(encoder), case, run.device(), seed, run.progress)
    control = None
    if baseline is not None:
        control = detect.judge(method, nets.load(baseline), case, run.device(), seed, run.progress)
    answer, doubt = detect.verdict(ruling, control)
    findings = ruling.findings
    results = {
        "method": str(method), "flags": method.flags, "verdict": answer, "doubt": doubt or None,
        "search_space": findings.search_space, "threshold": ruling.threshold, "alpha": case.alpha,
        "flagged": int(ruling.flagged.sum()), "p_value": ruling.p_value, "n_aux": len(case.evidence.aux),
        "n_calibration": len(findings.calibration), "n_judged": len(findings.scores), "sees_truth": method.is_bound,
        "trigger": params["trigger"] and str(params["trigger"]), **detect.measure(ruling, case),
        "controls": detect.controls(ruling, case, control), "details": findings.summary,
        "data": {"sha256": data.sha256}, "encoder": {"arch": encoder.arch, "sha256": encoder.sha256},
        "baseline": baseline and {"arch": baseline.arch, "sha256": baseline.sha256},
    }  # fmt: skip
    return Report(command="detect", results=results, data=detect.arrays(ruling, case)), doubt
