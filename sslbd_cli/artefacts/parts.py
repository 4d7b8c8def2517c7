"""Reports of several methods: split them, or pick the part that fits."""

from __future__ import annotations

from collections.abc import Callable

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.errors import InputError

# --- splitting a report of several methods ------------------------------------------------------------------------


def split(report: Report) -> list[tuple[str, Report]]:
    """Return the single methods' reports in a report of several methods, by name; [] for other reports.

    A report may come from anywhere, so malformed rows are ignored.
    """
    rows = report.results.get("methods") if report.command == "detect" else None
    reports = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not isinstance(row.get("part"), str):
            continue
        prefix = f"methods/{row['part']}/"
        data = {name[len(prefix) :]: array for name, array in report.data.items() if name.startswith(prefix)}
        results = {key: value for key, value in row.items() if key != "part"}
        reports.append((row["part"], Report(command="detect", results=results, data=data, history=report.history)))
    return reports


def one(report: Report, method: str) -> Report:
    """Return the part of one method in a report of several methods; return any other report unchanged."""
    return next((part for _, part in split(report) if part.results.get("method") == method), report)


def only(report: Report, fits: Callable[[Report], bool], option: str) -> Report:
    """Return the part that fits in a report of several methods; return any other report unchanged.

    If several parts fit, those with the verdict `found` win. Raises InputError if more than one part is left.
    """
    parts = [(name, part) for name, part in split(report) if fits(part)]
    with_backdoor = [(name, part) for name, part in parts if part.results.get("verdict") == "found"]
    parts = with_backdoor or parts
    if len(parts) > 1:
        names = ", ".join(name for name, _ in parts)
        raise InputError(f"{option}: the report is of several methods ({names}); give a report of one of them")
    return parts[0][1] if parts else report
