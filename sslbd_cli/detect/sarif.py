"""Write the log of `detect --sarif` (SARIF 2.1.0), so that code scanning shows the findings.

The log has one rule per method, one result per method that found a backdoor, and one notification per method that came
to no answer or did not run. It holds no time and no place, so that equal runs give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sslbd_cli import __version__, plugin
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.artefacts.outputs import atomic_output
from sslbd_cli.artefacts.results import CombinedResults, DetectResults, read
from sslbd_cli.words import chance, finite, number, one_line

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MANUAL = "man:sslbd-detect(1)"  # the scheme of uri(7): pages are installed with the program
#: What scanners show beside a finding.
HELP = (
    "Do not use what was judged before you have looked further. Look at the evidence: sslbd report REPORT. Ask other "
    "methods: sslbd detect --method all. See where the trigger that was found leads: sslbd probe --trigger. Clean an "
    "encoder with sslbd purify, a training set with sslbd purify --method filter. What this method looks for and its "
    "settings: sslbd detect --method {name}:help."
)
#: The numbers of a method that its property bag holds, if they are there.
PROPERTIES = (
    "flags", "p_value", "p_value_adjusted", "statistic", "threshold", "alpha", "flagged", "n_judged", "search_space",
    "witness", "panel",
)  # fmt: skip
SUBJECTS = {
    "encoder": "The encoder",
    "inputs": "The encoder, by the inputs it was given,",
    "samples": "The training set judged",
}


def write(path: str, source: str, report: Report, *, status: int) -> None:
    """Write the log of a run. source: path of the encoder. status: exit status of the run."""
    text = json.dumps(finite(log(source, report, status)), indent=1, ensure_ascii=True, allow_nan=False)
    with atomic_output(path) as file:
        file.write((text + "\n").encode())


def log(source: str, report: Report, status: int) -> dict[str, Any]:
    """Return the log as JSON values."""
    whole = read(report)
    assert isinstance(whole, (DetectResults, CombinedResults)) and whole.encoder is not None
    rows, left_out = (whole.methods, whole.not_run) if isinstance(whole, CombinedResults) else ((whole,), ())
    names = list(dict.fromkeys([row.name for row in rows] + [row.name for row in left_out]))
    rules = [_rule(name) for name in names]
    digest = str(whole.encoder.sha256)
    unread = report.results.get("methods", [report.results])  # a property bag holds the numbers as they are
    problems = [_result(row, numbers, names.index(row.name), (source, digest))
             for row, numbers in zip(rows, unread, strict=True)
             if row.verdict == "found" and not row.sees_truth]  # fmt: skip
    notifications = [_notification("warning", row.name, names, f"inconclusive: {row.doubt}")
            for row in rows if row.verdict == "inconclusive"]  # fmt: skip
    notifications += [_notification("note", row.name, names, f"did not run: {row.reason}") for row in left_out]
    invocation: dict[str, Any] = {"executionSuccessful": status in (0, 1), "exitCode": status}
    if notifications:
        invocation["toolExecutionNotifications"] = notifications
    driver = {
        "name": "sslbd", "version": __version__, "semanticVersion": __version__, "informationUri": MANUAL,
        "rules": rules,
    }  # fmt: skip
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "artifacts": [{"location": {"uri": _uri(source)}, "properties": {"kind": "encoder", "contentDigest": digest}}],
        "results": problems,
        "properties": {"verdict": whole.verdict},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(name: str) -> dict[str, Any]:
    """Describe a method by its docstring."""
    info = plugin.listing("detector")[name]
    return {
        "id": f"backdoor/{name}",
        "name": info.class_name,
        "shortDescription": {"text": one_line(info.summary)},
        "fullDescription": {"text": one_line(info.doc)},
        "help": {"text": HELP.format(name=name)},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security", "backdoor"]},
    }


def _result(results: DetectResults, numbers: dict[str, Any], rule: int, subject: tuple[str, str]) -> dict[str, Any]:
    """Describe the finding of one method. rule: index in the log. subject: the encoder's file and digest."""
    source, digest = subject
    place = {"artifactLocation": {"uri": _uri(source), "index": 0}, "region": {"startLine": 1}}  # scanners need a line
    return {
        "ruleId": f"backdoor/{results.name}",
        "ruleIndex": rule,
        "kind": "fail",
        "level": "error",
        "message": {"text": _message(results)},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"encoderDigest/v1": digest},
        "properties": {"method": results.method}
        | {key: numbers[key] for key in PROPERTIES if numbers.get(key) is not None},
    }


def _message(results: DetectResults) -> str:
    """Write a sentence: what was found, the p-value, and the search space."""
    text = f"{SUBJECTS[str(results.judges)]} shows a backdoor to {results.name}"
    if results.statistic is not None:
        text += f": statistic {number(results.statistic)}"
    elif results.flagged is not None:
        text += f": {results.flagged} of {results.n_judged} images flagged"
    text += f" (p-value {chance(results.final_p_value)})" if results.final_p_value is not None else ""
    if results.witness is not None and results.witness.success is not None:
        text += f"; the trigger it found works on {100 * results.witness.success:.0f} % of the images held out"
    triggers = [str(row.trigger) for row in results.panel if row.stands_out]
    text += f"; under {', '.join(triggers)}" if triggers else ""
    return one_line(f"{text}. Searched: {results.search_space}.")


def _notification(level: str, name: str, names: list[str], text: str) -> dict[str, Any]:
    rule = {"id": f"backdoor/{name}", "index": names.index(name)}
    return {"level": level, "message": {"text": one_line(f"{name}: {text}")}, "associatedRule": rule}


def _uri(source: str) -> str:
    """Return the percent-encoded URI of a file, relative if its path is."""
    if source == "-":
        return "standard-input"
    path = Path(source)
    return path.as_uri() if path.is_absolute() else quote(bytes(path))
