"""Reports of several methods: take them apart, or find the one that is meant."""

from __future__ import annotations

from collections.abc import Callable

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.errors import InputError

# --- taking a report of several apart -----------------------------------------------------------------------------


def split(report: Report) -> list[tuple[str, Report]]:
    """Return the reports of single methods that a report of several holds, by name; none for other reports.

    A report may come from anywhere: rows that are not what they should be are left out.
    """
    rows = report.results.get("methods") if report.command == "detect" else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not isinstance(row.get("part"), str):
            continue
        prefix = f"methods/{row['part']}/"
        data = {name[len(prefix) :]: array for name, array in report.data.items() if name.startswith(prefix)}
        results = {key: value for key, value in row.items() if key != "part"}
        found.append((row["part"], Report(command="detect", results=results, data=data, history=report.history)))
    return found


def one(report: Report, method: str) -> Report:
    """Return what a report says by one method: its part of a report of several, any other as it is."""
    return next((part for _, part in split(report) if part.results.get("method") == method), report)


def only(report: Report, fits: Callable[[Report], bool], option: str) -> Report:
    """Return the part of a report of several methods that fits, any other report as it is.

    Where several fit, the one whose verdict is `found`. Raises InputError where that leaves more than one.
    """
    parts = [(name, part) for name, part in split(report) if fits(part)]
    found = [(name, part) for name, part in parts if part.results.get("verdict") == "found"]
    parts = found or parts
    if len(parts) > 1:
        names = ", ".join(name for name, _ in parts)
        raise InputError(f"{option}: the report is of several methods ({names}); give a report of one of them")
    return parts[0][1] if parts else report
