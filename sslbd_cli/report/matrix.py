"""Make tables of attacks by detectors over seeds, from reports saved as ATTACK/SEED/NAME.h5. tables.py writes them.

Each row is an attack, each column a detector, named after its file, each cell the mean and standard deviation over the
seeds. The probe of a run says whether its attack works. A run whose attack fails counts in no cell, because there is
nothing to find. A row without probes, such as clean encoders, counts whole: it is the control.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.artefacts.parts import split
from sslbd_cli.artefacts.results import CleanMeasures, DetectResults, Estimate, ProbeResults, read
from sslbd_cli.cli.output import MISSING
from sslbd_cli.core.metrics import LARGEST_DROP, WORKING_ASR, attack_works
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import brief
from sslbd_cli.report.tables import Table

# --- the cells of a matrix, and which runs count

JUDGED = ("inputs", "encoder", "samples")  # what a detector may judge
LARGEST = 1e12  # larger numbers are left out: their mean would overflow
Gate = dict[tuple[str, str], bool]  # (row, run) -> whether the run counts


@dataclass(frozen=True)
class Cell:
    """One report of the matrix with its row, run and column. digest: of the report."""

    row: str
    run: str
    column: str
    digest: str
    results: ProbeResults | DetectResults

    @property
    def detected(self) -> DetectResults:
        """The results of a detector; empty results for a probe."""
        return self.results if isinstance(self.results, DetectResults) else DetectResults()

    @property
    def probed(self) -> ProbeResults:
        """The results of a probe; empty results for a detector."""
        return self.results if isinstance(self.results, ProbeResults) else ProbeResults()


def number(value: Estimate | float | None) -> float | None:
    """Return a number, or the value of an estimate; None if there is none, or if a mean of it would overflow."""
    value = value.value if isinstance(value, Estimate) else value
    return float(value) if value is not None and abs(value) < LARGEST else None


def gather(paths: Sequence[str], reports: Sequence[Report]) -> tuple[list[Cell], Gate]:
    """Place reports in a matrix, and tell which runs count. Raises InputError for a report that does not fit."""
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
    """Tell which runs count: those whose attack works, and all runs of a row without probes.

    Raises InputError where a run mixes encoders or triggers, or lacks a probe that other runs of its row have.
    """
    gate, probed = {}, {cell.row for cell in cells if _is_probe(cell)}
    for (row, run), group in grouped(cells, lambda cell: (cell.row, cell.run)):
        encoders = {cell.results.encoder and cell.results.encoder.sha256 for cell in group}
        for what, values in (("encoder", encoders), ("trigger", {cell.results.trigger for cell in group})):
            if len(values - {None}) > 1:
                raise InputError(f"{row}/{run}: its reports are of more than one {what}; use a folder per attack")
        probe = next(filter(_is_probe, group), None)
        if probe is None and row in probed:
            raise InputError(f"{row}/{run}: has no probe, but other runs of the attack do; give its probe, too")
        gate[row, run] = probe is None or _works(probe)
    return gate


def _cells(path: str, report: Report) -> Iterator[Cell]:
    """Place a report in the matrix. Each method of a report of several methods makes a cell of its own."""
    folders = Path(path).parts[-3:-1]
    if len(folders) < 2 or ".." in folders or path == "-":
        raise InputError(f"{path}: a matrix takes its rows and runs from folders; give ATTACK/SEED/DETECTOR.h5")
    row, run = folders
    for name, part in split(report) or [(Path(path).stem, report)]:
        results = read(part)
        if not isinstance(results, DetectResults) and not (isinstance(results, ProbeResults) and results.asr):
            raise InputError(
                f"{path}: expected a report of detect, or of probe with --trigger and --target, for a matrix"
            )
        if isinstance(results, DetectResults) and results.judges not in JUDGED:
            raise InputError(f"{path}: does not say whether it judges inputs, samples or an encoder")
        yield Cell(row, run, name, part.sha256, results)


def _is_probe(cell: Cell) -> bool:
    return isinstance(cell.results, ProbeResults)


def _check_distinct(cells: Sequence[Cell]) -> None:
    """Raise InputError for a cell that is filled twice, and for a report that would count as two runs."""
    places: dict[object, str] = {}
    for cell in cells:
        place = f"{cell.row}/{cell.run}/{cell.column}"
        kind = () if _is_probe(cell) else (cell.column,)
        for key in ((cell.row, cell.run, *kind), (cell.digest, cell.column)):
            if key in places:
                raise InputError(f"{place}: {_twice(places[key], place)}; a run counts once")
            places[key] = place


def _twice(first: str, second: str) -> str:
    return "is given twice" if first == second else f"holds the same as {first}"


def _works(probe: Cell) -> bool:
    """Tell whether an attack works. Raises InputError where the clean encoder's accuracy is missing."""
    results = probe.probed
    asr, accuracy, clean = number(results.asr), number(results.clean_accuracy), number(_clean(probe).clean_accuracy)
    if any(rate is None or not 0 <= rate <= 1 for rate in (asr, accuracy, clean)):
        place = f"{probe.row}/{probe.run}/{probe.column}"
        raise InputError(f"{place}: a matrix needs the clean encoder's numbers; run probe with --baseline")
    assert asr is not None and accuracy is not None and clean is not None
    return attack_works(asr, clean - accuracy)


#: The tables of attacks by detectors: what the detectors judge, title, meaning of a cell.
KINDS = (
    (
        "inputs",
        "Detectors of inputs",
        "AUROC of triggered against clean test images. In brackets: the same for the clean encoder; what exceeds 0.5"
        " there is due to the look of the trigger, not to the backdoor. Bold: the highest of the row.",
    ),
    (
        "encoder",
        "Detectors of encoders",
        "How many encoders of the row are found (false alarms in a clean row), and the statistic. A larger statistic"
        " is more suspicious; each detector has its own scale.",
    ),
    (
        "samples",
        "Detectors of training images",
        "AUROC of poisoned against clean training images, and in how many runs the verdict is found (false alarms in"
        " a clean row). Bold: the highest of the row.",
    ),
)
RATES = ("0.01", "0.05", "0.10")


def tables(paths: Sequence[str], reports: Sequence[Report]) -> list[Table]:
    """Return the tables of a matrix. Raises InputError for a path or a report that does not fit."""
    cells, gate = gather(paths, reports)
    probes = list(filter(_is_probe, cells))
    detections = [cell for cell in cells if not _is_probe(cell)]
    blocks = [_attacks(probes, gate)] if probes else []
    for kind, title, meaning in KINDS:
        of_kind = [cell for cell in detections if cell.detected.judges == kind]
        if of_kind:
            blocks.append(_square((title, meaning), of_kind, gate, WRITERS[kind]))
        counted = [cell for cell in of_kind if gate[cell.row, cell.run]]
        if kind == "inputs" and counted:
            blocks += [_rates(counted), *_controls(counted)]
        if kind == "samples" and counted:
            blocks.append(_removals(counted))
    return [*blocks, _settings(detections)] if detections else blocks


Writer = Callable[[Sequence[Cell]], str]  # writes a cell from its runs
Value = Callable[[Cell], Estimate | float | None]  # reads a number of one run

# --- tables -------------------------------------------------------------------------------------------------------


def _attacks(probes: Sequence[Cell], gate: Gate) -> Table:
    """Show what each attack does, and in how many runs it works."""
    rows = []
    for name, group in grouped(probes, lambda cell: cell.row):
        count = sum(gate[cell.row, cell.run] for cell in group)
        targets = ", ".join(dict.fromkeys(str(cell.probed.target) for cell in group))
        rows.append([
            name, f"{count} of {len(group)}",
            _beside(group, lambda run: run.probed.clean_accuracy, lambda run: _clean(run).clean_accuracy, 100),
            _beside(group, lambda run: run.probed.asr, lambda run: _clean(run).asr, 100), targets,
            _specs("trigger", [cell.probed.trigger for cell in group]),
        ])  # fmt: skip
    return Table(
        "Attacks",
        "Shares in percent, mean ± standard deviation over runs. In brackets: the clean encoder. An attack works if"
        f" its ASR is at least {100 * WORKING_ASR:g} % and accuracy falls by at most {100 * LARGEST_DROP:g} points"
        " (the victim gate). Other runs count in no table below.",
        ["attack", "works", "accuracy", "ASR", "target", "trigger"],
        rows,
        numeric=(1, 2, 3),
    )


def _square(heading: tuple[str, str], cells: Sequence[Cell], gate: Gate, write: Writer) -> Table:
    """Make a table of attacks by detectors. heading: title and meaning."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows, strong = [], set()
    for name, group in grouped(cells, lambda cell: cell.row):
        counted = [cell for cell in group if gate[cell.row, cell.run]]
        runs_of = {column: [cell for cell in counted if cell.column == column] for column in columns}
        ran = {cell.column for cell in group}
        rows.append([name] + [_filled(runs_of[column], column in ran, write) for column in columns])
        most = max((len(_values(runs, _auroc)) for runs in runs_of.values()), default=0)
        full = {c: _values(runs, _auroc) for c, runs in runs_of.items() if runs and not _is_told(runs)}
        areas = {column: statistics.mean(values) for column, values in full.items() if values and len(values) == most}
        highest = [column for column, area in areas.items() if area == max(areas.values())]
        strong |= {(len(rows) - 1, columns.index(column) + 1) for column in highest}
    return Table(*heading, ["attack", *columns], rows, range(1, len(columns) + 1), strong)


def _filled(runs: Sequence[Cell], ran: bool, write: Writer) -> str:
    if not runs:
        return "attack failed" if ran else "not run"
    doubtful = sum(cell.detected.verdict == "inconclusive" for cell in runs)
    return write(runs) + (f"; {doubtful} inconclusive" if doubtful and not _is_told(runs) else "")


def _input_cell(runs: Sequence[Cell]) -> str:
    return _beside(runs, _auroc, _control("auroc_clean_encoder"))


def _encoder_cell(runs: Sequence[Cell]) -> str:
    return f"{_found(runs)}; {_spread(runs, lambda run: run.detected.statistic)}"


def _sample_cell(runs: Sequence[Cell]) -> str:
    area = _spread(runs, _auroc)
    return _found(runs) if area == MISSING else f"{area}; {_found(runs)}"


WRITERS: dict[str, Writer] = {
    "inputs": _input_cell, "encoder": _encoder_cell, "samples": _sample_cell,
}  # fmt: skip


def _rates(cells: Sequence[Cell]) -> Table:
    """Show true and false positive rates of the detectors of inputs."""
    heads = [f"TPR at {float(rate) * 100:g} % FPR" for rate in RATES]
    rows = [
        [row, column, str(len(runs)), *(_spread(runs, _rate(at), 100) for at in RATES),
         _spread(runs, lambda run: run.detected.tpr, 100), _spread(runs, lambda run: run.detected.fpr, 100),
         _found(runs)]
        for (row, column), runs in grouped(cells, lambda cell: (cell.row, cell.column))
    ]  # fmt: skip
    return Table(
        "Detectors of inputs: rates",
        "In percent. At the threshold: share of triggered and of clean images above it; --aux alone sets it.",
        ["attack", "detector", "runs", *heads, "TPR at the threshold", "FPR at the threshold", "verdict"],
        rows,
        range(2, 9),
    )


def _controls(cells: Sequence[Cell]) -> Iterator[Table]:
    """Show the AUROC of other scores on the same images, for detectors that have such controls."""
    names = dict.fromkeys(
        name for cell in cells for name in cell.detected.controls
        if name.startswith("auroc_") and not name.endswith("clean_encoder")
    )  # fmt: skip
    rows = []
    for (row, column), runs in grouped(cells, lambda cell: (cell.row, cell.column)):
        values = [_beside(runs, _control(name), _control(f"{name}_clean_encoder")) for name in names]
        if any(value != MISSING for value in values):
            rows.append([row, column, *values])
    if rows:
        yield Table(
            "Detectors of inputs: controls",
            "AUROC of other scores on the same images: another score of the detector, shuffled embeddings, the mean"
            " colour of the pixels, or the score outside the trigger's box. In brackets: the clean encoder, if known.",
            ["attack", "detector", *(name.removeprefix("auroc_").replace("_", " ") for name in names)],
            rows,
            range(2, 2 + len(names)),
        )


def _removals(cells: Sequence[Cell]) -> Table:
    """Show how many images detectors of training images flag, and how many of them rightly."""
    rows = [
        [row, column, str(len(runs)), _spread(runs, lambda run: run.detected.recall, 100),
         _spread(runs, lambda run: run.detected.precision, 100),
         _spread(runs, lambda run: run.detected.top_accuracy.get("20"), 100),
         _spread(runs, lambda run: run.detected.flagged, places=0)]
        for (row, column), runs in grouped(cells, lambda cell: (cell.row, cell.column))
    ]  # fmt: skip
    heads = ["attack", "detector", "runs", "recall", "precision", "poisons among the first 20", "images flagged"]
    return Table(
        "Detectors of training images: what they take out",
        "In percent but for the last column.",
        heads,
        rows,
        range(2, 7),
    )


def _settings(cells: Sequence[Cell]) -> Table:
    rows = [[name, _specs("detector", [cell.detected.method for cell in group])]
            for name, group in grouped(cells, lambda cell: cell.column)]  # fmt: skip
    return Table("Detectors", "Each with the settings that differ from the defaults.", ["column", "detector"], rows)


def _specs(shelf: str, texts: Sequence[object]) -> str:
    """Write each spec string once, without the keys that have their defaults."""
    return "; ".join(dict.fromkeys(brief(shelf, str(text)) for text in texts if text is not None)) or MISSING


# --- cells --------------------------------------------------------------------------------------------------------


def _is_told(runs: Sequence[Cell]) -> bool:
    """Tell whether a column is a bound, which knows where the triggers are."""
    return any(cell.detected.sees_truth for cell in runs)


def _values(runs: Sequence[Cell], value: Value) -> list[float]:
    return [each for cell in runs if (each := number(value(cell))) is not None]


def _spread(runs: Sequence[Cell], value: Value, scale: float = 1, places: int | None = None) -> str:
    """Write mean and standard deviation over runs, or the value of a single run. If runs lack it, say how many."""
    values = [scale * each for each in _values(runs, value)]
    if not values:
        return MISSING
    places = (1 if scale == 100 else 3) if places is None else places
    text = f"{statistics.mean(values):.{places}f}"
    text += f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return text + (f" ({len(values)} of {len(runs)} runs)" if len(values) < len(runs) else "")


def _beside(runs: Sequence[Cell], value: Value, control: Value, scale: float = 1) -> str:
    clean = _spread(runs, control, scale)
    return _spread(runs, value, scale) + (f" [{clean}]" if clean != MISSING else "")


def _clean(cell: Cell) -> CleanMeasures:
    return cell.probed.baseline or CleanMeasures()


def _auroc(cell: Cell) -> Estimate | None:
    return cell.detected.auroc


def _control(name: str) -> Value:
    return lambda cell: cell.detected.controls.get(name)


def _rate(fpr: str) -> Value:
    return lambda cell: cell.detected.tpr_at_fpr.get(fpr)


def _found(runs: Sequence[Cell]) -> str:
    return f"{sum(cell.detected.verdict == 'found' for cell in runs)} of {len(runs)} found"
