"""Combine the reports of several detectors: correct p-values for their number, and give a verdict per kind.

The combined report holds the results of each detector in `methods`, and its arrays under methods/PART/. `split` takes
it apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.detect import significance
from sslbd_cli.detect.image_verdict import BEYOND_CHANCE

KINDS = ("encoder", "inputs", "samples")  # the order of the verdicts
#: What stays unknown if no method of a kind comes to an answer.
QUESTIONS = {
    "encoder": "whether a search finds a trigger in the encoder",
    "inputs": "whether inputs with a known trigger stand out",
    "samples": "whether the training set is poisoned",
}
ALL = "all"  # value of `--method` for all detectors that apply


def level(results: dict[str, Any]) -> float | None:
    """Return the limit of a method's p-value, or None if the method decides by a rule of its own."""
    if results.get("p_value") is None:
        return None
    allowed_share: float | None = results.get("false_alarms")
    return BEYOND_CHANCE if allowed_share is None and results["flags"] == "inputs" else allowed_share


def combine(reports: list[Report], not_run: list[dict[str, str]], asked: Iterable[str] = ()) -> Report:
    """Combine several reports: correct all p-values by Holm's method, and give a verdict per kind and over all.

    Found: a method's finding is left after the correction. A method that decides by a rule of its own has no p-value,
    so its finding counts as it is. Inconclusive: the correction removed a finding, inputs were flagged beyond chance
    without a control, or no method of a kind in `asked` gave an answer. Nothing found: otherwise, even if some methods
    are inconclusive. A bound, which is told where the triggers are, does not count beside detectors.
    """
    corrected_reports = correct(reports)
    parts = _parts(corrected_reports)
    all_rows = [report.results for report in corrected_reports]
    rows = [row for row in all_rows if not row.get("sees_truth")] or all_rows
    kinds = {kind: of_kind([row for row in rows if row["flags"] == kind]) for kind in KINDS}
    kinds = {kind: answer for kind, answer in kinds.items() if answer is not None}
    verdict, doubt = overall(rows)
    if verdict == "nothing found" and (open_questions := _open(rows, asked)):
        verdict, doubt = "inconclusive", open_questions
    results = {
        "verdict": verdict,
        "doubt": doubt or None,
        "correction": "holm",
        "kinds": kinds,
        "sees_truth": bool(all_rows) and all(row.get("sees_truth", False) for row in all_rows),
        "methods": [{"part": part} | report.results for part, report in zip(parts, corrected_reports, strict=True)],
        "not_run": not_run,
    }
    data = {
        f"methods/{part}/{name}": array
        for part, report in zip(parts, corrected_reports, strict=True)
        for name, array in report.data.items()
    }
    return Report(command="detect", results=results, data=data)


def correct(reports: list[Report]) -> list[Report]:
    """Add the corrected p-value to each report. A finding whose corrected p-value is too large becomes inconclusive."""
    with_p_value = [at for at, report in enumerate(reports) if level(report.results) is not None]
    adjusted_p_values = dict(
        zip(with_p_value, significance.holm([reports[at].results["p_value"] for at in with_p_value]), strict=True)
    )
    corrected_reports = []
    for at, report in enumerate(reports):
        results = report.results | {"p_value_adjusted": adjusted_p_values.get(at)}
        limit = level(results)
        if limit is not None and results["verdict"] == "found" and not bears_out(adjusted_p_values[at], results):
            doubt = f"its p-value, {results['p_value']:.2g}, is {adjusted_p_values[at]:.2g} among"
            doubt += f" {len(with_p_value)} methods, where {limit:.2g} is needed"
            doubt += "; give more clean encoders as --baseline" if results["flags"] == "encoder" else ""
            results |= {"verdict": "inconclusive", "doubt": doubt}
        corrected_reports.append(replace(report, results=results))
    return corrected_reports


def bears_out(p_value: float, results: dict[str, Any]) -> bool:
    """Tell whether a corrected p-value is within its limit: at most a share of clean encoders, or below chance."""
    limit = level(results)
    assert limit is not None
    return p_value < limit if results.get("false_alarms") is None else p_value <= limit + 1e-12


def of_kind(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the verdict over methods of one kind, or None without any. p_value: the smallest corrected one."""
    if not rows:
        return None
    p_values = [row["p_value_adjusted"] for row in rows if row["p_value_adjusted"] is not None]
    return {
        "verdict": overall(rows)[0],
        "p_value": min(p_values) if p_values else None,
        "methods": len(rows),
        "without_p_value": len(rows) - len(p_values),
        "found_by": [_name(row) for row in rows if row["verdict"] == "found"],
    }


def overall(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the verdict over corrected results, and the reason if it is `inconclusive`."""
    verdicts = Counter(row["verdict"] for row in rows)
    overruled_rows = [row for row in rows if row["verdict"] == "inconclusive" and _found_alone(row)]
    if verdicts["found"]:
        return "found", ""
    uncontrolled_rows = [row for row in rows if row.get("lacks_control")]
    if uncontrolled_rows:
        return "inconclusive", f"{_name(uncontrolled_rows[0])}: {uncontrolled_rows[0]['doubt']}"
    if overruled_rows:
        return "inconclusive", f"{_name(overruled_rows[0])} alone finds a backdoor: {overruled_rows[0]['doubt']}"
    if not verdicts["nothing found"]:
        reasons = "; ".join(f"{_name(row)}: {row['doubt']}" for row in rows) or "no method came to its end"
        return "inconclusive", reasons
    return "nothing found", ""


def _open(rows: list[dict[str, Any]], asked: Iterable[str]) -> str:
    """Return which questions no method answered, and what to do; empty if there are none."""
    answered_kinds = {row["flags"] for row in rows if row["verdict"] != "inconclusive"}
    questions = [QUESTIONS[kind] for kind in KINDS if kind in asked and kind not in answered_kinds]
    if not questions:
        return ""
    answers = "; ".join(f"{_name(row)}: {row['doubt']}" for row in rows if row["flags"] not in answered_kinds)
    reasons = f" ({answers})" if answers else ""
    return f"{' and '.join(questions)} is open, no method for it came to an answer{reasons}; give more --budget, if any"


def _found_alone(row: dict[str, Any]) -> bool:
    """Tell whether a method's own p-value is within its limit, but the corrected one is not."""
    adjusted_p_value = row["p_value_adjusted"]
    return adjusted_p_value is not None and bears_out(row["p_value"], row) and not bears_out(adjusted_p_value, row)


def _name(row: dict[str, Any]) -> str:
    return str(row["method"]).split(":")[0]


def _parts(reports: list[Report]) -> list[str]:
    """Name each report after its method. Further reports of the same name get a number."""
    counts, parts = Counter[str](), []
    for report in reports:
        name = _name(report.results)
        counts[name] += 1
        parts.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return parts
