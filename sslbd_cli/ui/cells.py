"""The cells of a matrix: reports kept as ATTACK/SEED/NAME.h5, and which runs of an attack count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslbd_cli.core.artefact import Report
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.metrics import attack_works
from sslbd_cli.core.screen import split

FLAGS = ("inputs", "encoder", "samples")  # what a detector may judge
LARGEST = 1e12  # no number of ours is larger; means of larger ones overflow
Gate = dict[tuple[str, str], bool]  # whether a row's run counts


@dataclass(frozen=True)
class Cell:
    """One report of the matrix, by its row, its run and its column."""

    row: str
    run: str
    column: str
    report: Report

    def at(self, path: str) -> float | None:
        """Return the number at a path of keys, of an estimate its value; None where there is none."""
        value: Any = self.text(path)
        value = value.get("value") if isinstance(value, dict) else value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if is_number and abs(value) < LARGEST else None  # not a number, too

    def text(self, path: str) -> Any:
        """Return what stands at a path of keys, joined by slashes, or None."""
        value: Any = self.report.results
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def gather(paths: Sequence[str], reports: Sequence[Report]) -> tuple[list[Cell], Gate]:
    """Place reports in a matrix, and tell which runs count. Raises InputError for what does not fit into one."""
    cells = [cell for path, report in zip(paths, reports, strict=True) for cell in _cells(path, report)]
    _check_distinct(cells)
    return cells, _gate(cells)


def grouped(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> list[tuple[Any, list[Cell]]]:
    """Group cells in the order given."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.items())


def _gate(cells: Sequence[Cell]) -> Gate:
    """Tell which runs count: of attacks those that work, of rows without any probe all.

    Raises InputError where reports of a run are not of one encoder and trigger, or a run of an attack has no probe.
    """
    gate, probed = {}, {cell.row for cell in cells if cell.report.command == "probe"}
    for (row, run), group in grouped(cells, lambda cell: (cell.row, cell.run)):
        for path in ("encoder/sha256", "trigger"):
            if len({str(cell.text(path)) for cell in group if cell.text(path) is not None}) > 1:
                what = path.split("/")[0]
                raise InputError(f"{row}/{run}: its reports are of more than one {what}; a run is one attack's")
        probe = next((cell for cell in group if cell.report.command == "probe"), None)
        if probe is None and row in probed:
            raise InputError(f"{row}/{run}: other runs of the attack have a probe; give this one's, too")
        gate[row, run] = probe is None or _works(probe)
    return gate


def _cells(path: str, report: Report) -> Iterator[Cell]:
    """Place a report in the matrix, each part of a report of several methods by itself."""
    folders = Path(path).parts[-3:-1]
    if len(folders) < 2 or ".." in folders or path == "-":
        raise InputError(f"{path}: a matrix takes its rows and runs from folders: give ATTACK/SEED/DETECTOR.h5")
    row, run = folders
    if report.command == "probe" and "asr" in report.results:
        yield Cell(row, run, Path(path).stem, report)
    elif report.command == "detect":
        for name, part in split(report) or [(Path(path).stem, report)]:
            if part.results.get("flags") not in FLAGS:
                raise InputError(f"{path}: does not say whether it judges inputs, samples or an encoder")
            yield Cell(row, run, name, part)
    else:
        raise InputError(f"{path}: expected a report of detect, or of probe with --trigger, for a matrix")


def _check_distinct(cells: Sequence[Cell]) -> None:
    """Refuse a cell that is filled twice, and a report that would count as two runs."""
    seen: dict[object, str] = {}
    for cell in cells:
        place = f"{cell.row}/{cell.run}/{cell.column}"
        kind = () if cell.report.command == "probe" else (cell.column,)
        for key in ((cell.row, cell.run, *kind), (cell.report.sha256, cell.column)):
            if key in seen:
                raise InputError(f"{place}: {_twice(seen[key], place)}; a run counts once")
            seen[key] = place


def _twice(first: str, second: str) -> str:
    return "is given twice" if first == second else f"has what {first} has"


def _works(probe: Cell) -> bool:
    """Tell whether an attack works. Without the clean encoder's accuracy nobody knows what it cost."""
    asr, accuracy = probe.at("asr"), probe.at("clean_accuracy")
    clean = probe.at("baseline/clean_accuracy")
    if any(rate is None or not 0 <= rate <= 1 for rate in (asr, accuracy, clean)):
        place = f"{probe.row}/{probe.run}/{probe.column}"
        raise InputError(f"{place}: a matrix needs the clean encoder's numbers; probe with --baseline")
    assert asr is not None and accuracy is not None and clean is not None
    return attack_works(asr, clean - accuracy)
