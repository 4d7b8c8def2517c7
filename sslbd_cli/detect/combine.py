"""Several detectors on one encoder: p-values corrected for their number, one verdict per kind, one report of them all.

A report of several holds `methods`, each one's results, and their arrays under methods/PART/; `split` takes them apart.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core import metrics
from sslbd_cli.detect.image_verdict import BEYOND_CHANCE

KINDS = ("encoder", "inputs", "samples")  # the order of the verdicts
ALL = "all"  # what `--method` calls whatever applies


def level(results: dict[str, Any]) -> float | None:
    """Return what a method's p-value is held to; None where it decides by a rule of its own."""
    if results.get("p_value") is None:
        return None
    if results["flags"] == "inputs":
        return BEYOND_CHANCE
    allowed_share: float | None = results.get("false_alarms")
    return allowed_share


def combine(reports: list[Report], not_run: list[dict[str, str]]) -> Report:
    """Make one report of several: each corrected by Holm's method over all that give a p-value, a verdict per kind.

    Found: a method finds a backdoor, and its p-value still does after the correction; one that decides by a rule of
    its own has none to correct, and counts as it is. Inconclusive: a finding did not outlast the correction, or no
    method came to an answer. Nothing found: otherwise, though some methods may be inconclusive. A bound, which is told
    where the triggers are, has no say beside detectors.
    """
    corrected_reports = correct(reports)
    parts = _parts(corrected_reports)
    all_rows = [report.results for report in corrected_reports]
    rows = [row for row in all_rows if not row.get("sees_truth")] or all_rows
    kinds = {kind: of_kind([row for row in rows if row["flags"] == kind]) for kind in KINDS}
    kinds = {kind: answer for kind, answer in kinds.items() if answer is not None}
    verdict, doubt = overall(rows)
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
    """Add the corrected p-value to each report; a finding that it does not bear out becomes inconclusive."""
    with_p_value = [at for at, report in enumerate(reports) if level(report.results) is not None]
    adjusted_p_values = dict(
        zip(with_p_value, metrics.holm([reports[at].results["p_value"] for at in with_p_value]), strict=True)
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
    """Tell whether a corrected p-value is small enough: below what inputs need, at most what a pool allows."""
    limit = level(results)
    assert limit is not None
    return p_value < limit if results["flags"] == "inputs" else p_value <= limit + 1e-12


def of_kind(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the verdict over methods of one kind, None without any: p_value is the least corrected one."""
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
    """Return the verdict over corrected results and, where it is `inconclusive`, why."""
    verdicts = Counter(row["verdict"] for row in rows)
    overruled_rows = [row for row in rows if row["verdict"] == "inconclusive" and _found_alone(row)]
    if verdicts["found"]:
        return "found", ""
    if overruled_rows:
        return "inconclusive", f"{_name(overruled_rows[0])} alone finds a backdoor: {overruled_rows[0]['doubt']}"
    if not verdicts["nothing found"]:
        reasons = "; ".join(f"{_name(row)}: {row['doubt']}" for row in rows) or "no method came to its end"
        return "inconclusive", reasons
    return "nothing found", ""


def _found_alone(row: dict[str, Any]) -> bool:
    """Tell whether a method's own p-value is small enough, and only the correction says otherwise."""
    adjusted_p_value = row["p_value_adjusted"]
    return adjusted_p_value is not None and bears_out(row["p_value"], row) and not bears_out(adjusted_p_value, row)


def _name(row: dict[str, Any]) -> str:
    return str(row["method"]).split(":")[0]


def _parts(reports: list[Report]) -> list[str]:
    """Name each report after its method; a second of one name gets a number."""
    counts, parts = Counter[str](), []
    for report in reports:
        name = _name(report.results)
        counts[name] += 1
        parts.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return parts
