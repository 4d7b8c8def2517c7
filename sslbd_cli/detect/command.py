"""Look for a backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run
from sslbd_cli.cli.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.detect.request import Screening


@options.command(
    "detect",
    examples=(
        "sslbd detect backdoored.safetensors --method dede --data test.h5 --aux clean.h5 --trigger patch"
        " --baseline encoder.safetensors -o detection.h5",
        "sslbd detect backdoored.safetensors --method poisoncam --data poisoned.h5 -o detection.h5",
        "sslbd detect backdoored.safetensors --guard guard.safetensors --data incoming.h5 --exit-code",
        "sslbd detect encoder.safetensors --method all --budget 600 --exit-code --sarif detection.sarif",
    ),
)
@options.input_argument("ENCODER")
@click.option(
    "--method",
    type=Spec("detector", also=("all",)),
    multiple=True,
    metavar="SPEC|all",
    help="Detector; 'help' lists, 'NAME:help' explains; repeat it, or all that apply.  [default: dede]",
)
@options.artefact("--data", help="Images to judge. For a detector of encoders: clean images to search a trigger with. "
                                 "Without it: common triggers on --aux, or on built-in images.")  # fmt: skip
@options.artefact("--aux", help="Other unlabeled clean images, for detectors of inputs to learn and calibrate on.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC",
              help="Also judge --data with this trigger, to measure detectors of inputs. "
                   "They are not told of it.")  # fmt: skip
@options.artefact("--baseline", multiple=True,
                  help="A clean encoder to judge the same images by. For a detector of encoders: repeat it, "
                       "or give such a detector's reports on clean encoders.")  # fmt: skip
@options.artefact("--backdoored", multiple=True,
                  help="A backdoored encoder, for detectors that learn from such. Repeat it.")  # fmt: skip
@options.artefact("--reference",
                  help="An independent encoder, for detectors of inputs that compare with one.")  # fmt: skip
@options.artefact("--save-guard", help="Write here what a detector of inputs learned, to judge other images by it.")
@options.artefact("--guard", help="Judge --data by this guard, which --save-guard made for the same encoder.")
@click.option("--alpha", type=options.Number(1e-9, 0.5),
              help="Share of clean inputs, or of clean encoders, that may be flagged.  [default: 0.05]")  # fmt: skip
@click.option("--budget", type=options.Number(0, min_open=True), metavar="SECONDS",
              help="Time for the whole run. Several methods share it, the cheapest first. "
                   "A method that its time does not suffice for is inconclusive.")  # fmt: skip
@click.option("--exit-code", is_flag=True, help="Exit 1 if a backdoor is found.")
@click.option("--sarif", type=options.ArtefactPath(), metavar="FILE",
              help="Also write the findings here as SARIF 2.1.0, for code scanning.")  # fmt: skip
@options.json_lines
@options.limit
@options.seed
@options.device()
@options.report_output
def command(run: Run, output: str | None, json_lines: bool, exit_code: bool, sarif: str | None, **params: Any) -> None:
    """Look for a backdoor, and say how far the answer can be trusted.

    The verdict is found, nothing found (the search space is named) or inconclusive (exit 3). It is never clean.

    ENCODER may also be a foreign checkpoint or an address on the Hugging Face hub (hf://OWNER/NAME). It is converted in
    passing, as by sslbd convert without options.

    Detectors of inputs judge images that the encoder is given. They learn on one part of --aux, and the other part sets
    the threshold. Detectors of samples judge the training set itself and need no other images; `sslbd purify --method
    filter` removes the images that they flag. Detectors of encoders search for a trigger with clean images and test it
    on images held out. The report keeps the trigger, and --trigger witness:file=REPORT stamps it again. Four or more
    clean encoders of the same kind, given as --baseline, tell what is usual.

    Truth that --data records, or that --trigger makes known, only measures the detector afterwards. --limit counts
    images of --data; without --data it counts the images that each trigger is put on.

    --save-guard keeps what a detector of inputs learned. --guard judges further images by it without --aux, and says
    how fast it is. A guard fits one encoder alone. The report holds a p-value for each image.

    Without --data, a part of --aux, or of built-in synthetic images, is judged with common triggers, with the triggers
    that the encoder's history names, and with --trigger. Each trigger is judged by itself. No file that the history
    names is opened: name it by --trigger. A training set is only judged if it is given.

    Any change moves embeddings somewhat. So a trigger is only found if it does what its kin do not: harmless changes of
    the same strength, such as its pattern shuffled, recoloured or turned. With a clean encoder as --baseline, it must
    also be flagged more than by that encoder, and kin are not asked where most of its images are flagged, and by the
    clean encoder no more than chance explains. Images of --data without a trigger have no kin: if they are flagged
    beyond chance, only a --baseline can tell a backdoor from images that differ from --aux for any encoder.

    The p-values of several methods are corrected by Holm's method. A method that decides by a published rule of its
    own has no p-value and counts as it is. The verdict over all methods is found if any finding is left after the
    correction. It is inconclusive if the correction removes every finding, or if a part of the question stays open:
    no detector of encoders, or none of inputs, gave an answer.
    """
    from sslbd_cli.artefacts.outputs import together
    from sslbd_cli.cli.output import print_results
    from sslbd_cli.errors import InputError, Unsound

    if sarif == "-":
        raise InputError("--sarif -: standard output carries the report; name a file")
    run.claim(params["save_guard"], "--save-guard")
    run.claim(sarif, "--sarif")
    with together():
        report, resolved, speed = _by_guard(run, params) if params["guard"] else _by_methods(run, params)
        if output != "-":  # with -o -, the report itself goes there
            print_results(_shown(report, json_lines=json_lines) | speed, json_lines=json_lines)
        if output is not None:
            run.write(report, output, **resolved)
        doubt = report.results["doubt"]
        is_stop = exit_code and report.results["verdict"] == "found" and not report.results.get("sees_truth")
        if sarif is not None:
            from sslbd_cli.detect.sarif import write

            write(sarif, params["input"], report, status=3 if doubt else int(is_stop))
    if doubt:
        raise Unsound(f"inconclusive: {doubt}")
    if is_stop:
        raise click.exceptions.Exit(1)


def _by_guard(run: Run, params: dict[str, Any]) -> tuple[Report, dict[str, Any], dict[str, float]]:
    """Judge by a guard: the report, the options that the history records, and how fast the guard was."""
    from sslbd_cli.detect import guarding, inputs

    request = inputs.read_guard_request(run, params)
    report, speed = guarding.judge_stream(request, run.session())
    return report, {"method": None, "alpha": request.alpha}, speed


def _by_methods(run: Run, params: dict[str, Any]) -> tuple[Report, dict[str, Any], dict[str, float]]:
    """Judge by one method or several: the report, the options that the history records, and no speed."""
    from sslbd_cli.detect import forecast, inputs, judge, several

    screening = inputs.read(run, params)
    forecast.tell(screening.encoder, screening.requests, run.session(), run)
    if (request := screening.single) is None:
        report = several.judge_all(screening, run.session(), run)
    else:
        report, guard = judge.judge_within_limits(request, run.session(), run)
        if guard is not None:
            run.write(guard, params["save_guard"], method=[request.method], alpha=screening.alpha)
    return report, _resolved(report, screening, params), {}


def _resolved(report: Report, screening: Screening, params: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the history records: the methods, and --alpha if a method takes it.

    For several methods it records those that were asked for, or, with a budget, those that ran.
    """
    rows = report.results.get("methods")
    method: Any = params["method"]
    if rows is None:
        method = report.results["method"]
    elif params["budget"] is not None:
        method = [row["method"] for row in rows]
    takes_alpha = {row["flags"] for row in ([report.results] if rows is None else rows)} != {"samples"}
    return {"method": method, "alpha": screening.alpha if takes_alpha else None}


def _shown(report: Report, *, json_lines: bool) -> dict[str, Any]:
    """Return what is printed. For several methods: a JSON line each and one for all, or a table."""
    results = report.results
    if "methods" not in results:
        return results
    rows = [{key: value for key, value in row.items() if key != "part"} for row in results["methods"]]
    if json_lines:
        return {"rows": [*rows, results | {"methods": [row["method"] for row in rows]}]}
    return results | {"methods": [_brief(row) for row in rows]}


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a method in the table, with area and success of its witness."""
    witness = row.get("witness") or {}
    name = {"method": row["method"].split(":")[0]}
    columns = ("flags", "verdict", "p_value", "p_value_adjusted", "statistic", "panel_trigger", "flagged",
               "n_judged")  # fmt: skip
    more = {"witness_area": witness.get("area"), "witness_success": witness.get("success"), "doubt": row.get("doubt")}
    return name | {key: row.get(key) for key in columns} | more
