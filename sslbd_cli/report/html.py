"""Gather what one HTML page shows of many reports: results, figures and lineage. The templates lay it out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sslbd_cli.artefacts.history import History, main_line, maker, needed
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.artefacts.recipe import command_line
from sslbd_cli.artefacts.results import CombinedResults, DetectResults, Estimate, Measures, ProbeResults, Results, read
from sslbd_cli.cli.output import MISSING, lines, tables
from sslbd_cli.report.figures import Picture
from sslbd_cli.report.plots import DPI
from sslbd_cli.report.webpage import rate, render

SCALE = 96 / DPI  # pixels of the page per pixel of a figure: true to size, and sharp on dense screens
#: The first keys of a table of numbers, in this order; artefacts store their keys sorted by name.
ORDER = (
    "method", "head", "verdict", "flags", "search_space", "clean_accuracy", "patched_accuracy", "asr", "asr_all",
    "lift", "fp_clean", "fp_triggered", "nfp", "auroc", "average_precision", "tpr_at_fpr", "removed",
    "recall", "precision", "top_accuracy", "localisation", "threshold", "alpha",
    "n_judged", "flagged", "n_aux", "controls", "target", "trigger", "classes", "n_train", "n_labelled", "n_test",
)  # fmt: skip
Column = tuple[str, Callable[[Any], object]]  # a title, and a function from results to the value shown
#: Columns of probes. Each of MEASURES is shown with the same number of the clean encoder.
MEASURES: tuple[tuple[str, Callable[[Measures], Estimate | float | None]], ...] = (
    ("clean accuracy", lambda r: r.clean_accuracy),
    ("patched accuracy", lambda r: r.patched_accuracy),
    ("ASR", lambda r: r.asr),
    ("FP, clean images", lambda r: r.fp_clean),
    ("FP, triggered images", lambda r: r.fp_triggered),
)
PROBES: tuple[Column, ...] = (*MEASURES[:3], ("lift", lambda r: r.lift), *MEASURES[3:])
ENCODERS: tuple[tuple[str, Callable[[DetectResults], object]], ...] = (
    ("detector", lambda r: r.name or None),
    ("statistic", lambda r: r.statistic),
    ("threshold", lambda r: r.threshold),
    ("p-value", lambda r: r.p_value),
    ("clean encoders", lambda r: r.n_baseline),
    ("trigger's area", lambda r: r.witness and r.witness.area),
    ("trigger's success", lambda r: r.witness and r.witness.success),
    ("verdict", lambda r: r.verdict),
)
IMAGES: tuple[tuple[str, Callable[[DetectResults], object]], ...] = (
    ("detector", lambda r: r.name or None),
    ("AUROC", lambda r: r.auroc),
    ("top 20", lambda r: r.top_accuracy.get("20")),
    ("flagged", lambda r: r.flagged),
    ("recall", lambda r: r.recall),
    ("precision", lambda r: r.precision),
    (
        "trigger hit",
        lambda r: r.localisation and r.localisation.all and r.localisation.all.center_hit,
    ),
    ("verdict", lambda r: r.verdict),
)


@dataclass(frozen=True)
class Entry:
    """One report on the page.

    slug: the unique anchor. pictures: the figures. is_part: the report is one method of the report before it.
    digest: of the file that the report is a part of; empty means the report's own digest.
    """

    label: str
    slug: str
    report: Report
    pictures: Sequence[Picture] = field(default=(), repr=False)
    is_part: bool = False
    digest: str = ""

    @cached_property
    def results(self) -> Results:
        """The typed results of the report."""
        return read(self.report)


def page(entries: Sequence[Entry], shared: Sequence[Picture] = ()) -> str:
    """Return the whole page. shared: figures that compare all reports."""
    anchors: dict[bytes, str] = {}
    whole = sum(not entry.is_part for entry in entries)
    return render(
        "page.html",
        "sslbd report",
        f"{whole} report" + ("s" if whole > 1 else ""),
        judged=[entry for entry in entries if _is_evidence(entry.results)],
        headlines=_headlines(entries),
        shared=list(_figures("all", shared, anchors)),
        sections=[_section(entry, anchors) for entry in entries],
        environment=[(entry.label, _made_with(entry.report.history)) for entry in entries if not entry.is_part],
    )


def _is_evidence(results: Results) -> bool:
    """Tell whether results hold the verdict of a detector. A bound, which knows the truth, does not count."""
    if not isinstance(results, (DetectResults, CombinedResults)):
        return False
    return results.verdict is not None and not results.sees_truth


# --- tables over all reports --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """A table of all reports of one kind, one row per report."""

    title: str
    columns: list[str]
    rows: list[HeadlineRow]


@dataclass(frozen=True)
class HeadlineRow:
    """One row of a headline table. is_clean: its encoder is the clean one that the others are compared with."""

    entry: Entry
    is_clean: bool
    numbers: list[HeadlineNumber]


@dataclass(frozen=True)
class HeadlineNumber:
    """One cell of a headline table: the value of a report. beside: the same number of the clean encoder, as text."""

    title: str
    value: object
    beside: str


def _headlines(entries: Sequence[Entry]) -> list[Headline]:
    """Make one table each for detectors of encoders, probes, detectors of images, and all other reports."""
    groups: dict[tuple[str, tuple[Column, ...]], list[Entry]] = {
        ("Encoders judged", ENCODERS): [], ("Probes", PROBES): [], ("Detectors", IMAGES): [], ("Others", ()): [],
    }  # fmt: skip
    for entry in entries:
        if not isinstance(entry.results, CombinedResults):  # its parts are entries, too
            groups[_group(entry.results)].append(entry)
    return [_headline(title, columns, rows) for (title, columns), rows in groups.items() if rows]


def _group(results: Results) -> tuple[str, tuple[Column, ...]]:
    group: tuple[str, tuple[Column, ...]] = "Others", ()
    if isinstance(results, ProbeResults):
        group = "Probes", PROBES
    elif isinstance(results, DetectResults):
        group = ("Detectors", IMAGES) if results.statistic is None else ("Encoders judged", ENCODERS)
    return group if any(value(results) is not None for _, value in group[1]) else ("Others", ())


def _headline(title: str, columns: Sequence[Column], entries: Sequence[Entry]) -> Headline:
    """Make one table. A column without any value is left out."""
    in_use = [(name, value) for name, value in columns if any(value(entry.results) is not None for entry in entries)]
    controls = [entry.results.baseline for entry in entries if isinstance(entry.results, ProbeResults)]
    clean = {control.sha256 for control in controls if control is not None} - {None}
    rows = []
    for entry in entries:
        results = entry.results
        is_clean = isinstance(results, ProbeResults) and results.asr is not None and _digest(results) in clean
        numbers = [
            HeadlineNumber(name, value(results), "" if is_clean else _beside(results, name)) for name, value in in_use
        ]
        rows.append(HeadlineRow(entry, is_clean, numbers))
    return Headline(title, [name for name, _ in in_use], rows)


def _digest(results: Results) -> str | None:
    return results.encoder.sha256 if results.encoder else None


def _beside(results: Results, column: str) -> str:
    """Write the clean encoder's number that a probe's own number is compared with; empty if there is none."""
    value = dict(MEASURES).get(column)
    if value is None or not isinstance(results, ProbeResults) or value(results) is None:
        return ""
    control = results.baseline and value(results.baseline)
    if control is None:
        return "not measured" if column == "ASR" else ""
    return rate(control.value if isinstance(control, Estimate) else control)


# --- one report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """The section of one report: its figures, all its numbers, and the commands that made it."""

    entry: Entry
    figures: list[EmbeddedPicture]
    lines: list[tuple[str, str]]
    tables: list[tuple[str, list[str], list[list[str]]]]
    steps: list[Step]


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture in base64. width, height: in pixels. same_as: the anchor of an equal picture further up the page."""

    anchor: str
    picture: Picture
    same_as: str = ""
    data: str = ""
    width: int = 0
    height: int = 0


def _section(entry: Entry, anchors: dict[bytes, str]) -> Section:
    unread = entry.report.results
    keys = sorted(unread, key=lambda key: (ORDER.index(key) if key in ORDER else len(ORDER), key))
    numbers = {key: unread[key] for key in keys}
    figures = list(_figures(entry.slug, entry.pictures, anchors))
    return Section(entry, figures, list(lines(numbers)), list(tables(numbers)), _steps(entry.report.history))


def _figures(slug: str, pictures: Sequence[Picture], anchors: dict[bytes, str]) -> Iterator[EmbeddedPicture]:
    """Encode each picture once. anchors: PNG -> anchor of each picture that is on the page already; it grows."""
    for picture in pictures:
        anchor = f"{slug}-{picture.name}"
        if picture.png in anchors:
            yield EmbeddedPicture(anchor, picture, anchors[picture.png])
            continue
        anchors[picture.png] = anchor
        # the PNG header holds width and height
        width, height = (round(int.from_bytes(picture.png[at : at + 4], "big") * SCALE) for at in (16, 20))
        yield EmbeddedPicture(anchor, picture, "", base64.b64encode(picture.png).decode("ascii"), width, height)


# --- where it comes from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One command of a history. made_with: versions and device, as text."""

    command: str
    made_with: str
    inputs: list[StepInput]


@dataclass(frozen=True)
class StepInput:
    """One input of a command. made_by: the place in the list of the command that made it, from 1; 0: unknown."""

    option: str
    what: str
    sha256: str
    made_by: int


def _steps(history: History) -> list[Step]:
    """List the commands of a history in order, each after those that made its inputs."""
    numbers = needed(history)
    places = {at: place for place, at in enumerate(numbers, 1)}

    def source(at: int, row: dict[str, Any]) -> StepInput:
        made_by = maker(history, at, row)
        what = " ".join(str(row[key]) for key in ("kind", "file") if key in row)
        return StepInput(row["option"], what, row["sha256"], 0 if made_by is None else places[made_by])

    return [
        Step(
            command_line(history[at]),
            " · ".join(f"{key} {history[at][key]}" for key in ("version", "torch", "device") if key in history[at]),
            [source(at, row) for row in history[at]["inputs"]],
        )
        for at in numbers
    ]


def _made_with(history: History) -> list[str]:
    """Return sslbd version, torch version, device and precision of a report, read from its history."""
    line = main_line(history)
    columns = [[step[key] for step in line if key in step] for key in ("version", "torch", "device")]
    columns.append([step["args"]["--precision"] for step in line if "--precision" in step["args"]])
    return [", ".join(dict.fromkeys(map(str, column))) or MISSING for column in columns]
