"""One HTML page from many reports, in the frame that webpage.py gives: what they say, show and come from."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslbd_cli.artefacts.kinds import History, Report
from sslbd_cli.artefacts.recipe import command_line
from sslbd_cli.cli.output import MISSING, cell, chance, is_interval, label, lines, tables
from sslbd_cli.report.figures import Picture
from sslbd_cli.report.plots import DPI
from sslbd_cli.report.webpage import frame, safe, table

SCALE = 96 / DPI  # pixels of the page per pixel of a figure: as large as drawn, sharp on dense screens
#: The first keys of a table of numbers, in this order; artefacts store their keys sorted by name.
ORDER = (
    "method", "head", "verdict", "flags", "search_space", "clean_accuracy", "patched_accuracy", "asr", "asr_all",
    "lift", "fp_clean", "fp_triggered", "nfp", "auroc", "average_precision", "tpr_at_fpr", "removed",
    "recall", "precision", "top_accuracy", "localisation", "threshold", "alpha",
    "n_judged", "flagged", "n_aux", "controls", "target", "trigger", "classes", "n_train", "n_labelled", "n_test",
)  # fmt: skip
#: The tables over all reports: title, what a report in it has, and columns, each a title and where the number is found
#: in the results. A report is in the first table that takes it.
HEADLINES = (
    (
        "Encoders judged",
        "statistic",
        (
            ("detector", "method"),
            ("statistic", "statistic"),
            ("threshold", "threshold"),
            ("p-value", "p_value"),
            ("clean encoders", "n_baseline"),
            ("trigger's area", "witness.area"),
            ("trigger's success", "witness.success"),
            ("verdict", "verdict"),
        ),
    ),
    (
        "Probes",
        "",
        (
            ("clean accuracy", "clean_accuracy"),
            ("patched accuracy", "patched_accuracy"),
            ("ASR", "asr"),
            ("lift", "lift"),
            ("FP, clean images", "fp_clean"),
            ("FP, triggered images", "fp_triggered"),
        ),
    ),
    (
        "Detectors",
        "",
        (
            ("detector", "method"),
            ("AUROC", "auroc"),
            ("top 20", "top_accuracy.20"),
            ("flagged", "flagged"),
            ("recall", "recall"),
            ("precision", "precision"),
            ("trigger hit", "localisation.all.center_hit"),
            ("verdict", "verdict"),
        ),
    ),
)
BESIDE = ("clean_accuracy", "patched_accuracy", "asr", "fp_clean", "fp_triggered")  # shown with the clean encoder's
WORDS = (
    (
        "clean accuracy",
        "share of clean test images that the probe, a classifier on the frozen encoder, answers rightly",
    ),
    ("patched accuracy", "the same test images with the trigger, against their true labels"),
    ("ASR", "attack success rate: share of triggered images of other classes that are called the target"),
    ("lift", "ASR minus the ASR of a clean encoder under the same trigger: what the backdoor itself does"),
    ("FP", "false positives: how many test images of other classes are called the target"),
    ("AUROC", "how well the scores rank triggered above clean images: 0.5 is chance, 1 is perfect"),
    (
        "recall, precision",
        "share of the poisoned images that is flagged, and share of the flagged images that is poisoned",
    ),
    ("top 20", "share of poisoned images among the 20 that the detector is surest of"),
    ("trigger hit", "share of the poisoned images looked at whose window holds the centre of the trigger"),
    ("statistic", "how suspicious an encoder is; larger is more so, on a scale of the detector's own"),
    (
        "p-value",
        "of an encoder: the probability that one as clean as those given as baselines has as large a statistic",
    ),
    (
        "trigger's success, area",
        "share of held-out images that the trigger found does its work on, and share of the pixels it takes away",
    ),
    ("nothing found", "no backdoor of the kinds searched for; it does not say that there is none"),
    ("[low, high]", "95 % interval"),
)


@dataclass(frozen=True)
class Entry:
    """One report on the page. slug: its anchor, unique; pictures: its figures; is_part: of a report before it.

    digest: of the whole file that the report is a part of; without it, the report's own.
    """

    label: str
    slug: str
    report: Report
    pictures: Sequence[Picture] = field(default=(), repr=False)
    is_part: bool = False
    digest: str = ""


def page(entries: Sequence[Entry], shared: Sequence[Picture] = ()) -> str:
    """Return the whole page. shared: figures that concern all reports."""
    shown: dict[bytes, str] = {}
    parts = [
        *_verdicts(entries),
        "<section><h2>Results</h2>",
        *_headlines(entries),
        *_figures("all", shared, shown),
        "</section>",
        *(part for entry in entries for part in _section(entry, shown)),
        *_environment(entries),
        *_glossary(),
    ]
    whole = sum(not entry.is_part for entry in entries)
    return frame("sslbd report", f"{whole} report" + ("s" if whole > 1 else ""), parts)


# --- what a reader sees first -------------------------------------------------------------------------------------


def _verdicts(entries: Sequence[Entry]) -> Iterator[str]:
    told = [entry for entry in entries if "verdict" in entry.report.results]
    judged = [entry for entry in told if entry.report.results.get("sees_truth") is not True]  # a bound is no evidence
    if judged:
        yield '<section><h2>Verdicts</h2><ul class="verdicts">'
        yield from (f"<li>{_badge(e.report.results['verdict'])}<p>{_sentence(e)}</p></li>" for e in judged)
        yield "</ul></section>"


def _badge(verdict: Any) -> str:
    looks = {"found": "bad", "nothing found": "calm", "inconclusive": "unsure"}
    return f'<span class="badge {looks.get(str(verdict), "unsure")}">{safe(verdict)}</span>'


def _sentence(entry: Entry) -> str:
    """Say in words what a detector did, with what it can say of."""
    get = entry.report.results.get
    if isinstance(kinds := get("kinds"), dict):
        return _over_all(entry, kinds)
    text = f'<a href="#{entry.slug}">{safe(entry.label)}</a>: {safe(str(get("method") or "detector").split(":")[0])}'
    if get("flagged") is not None and get("n_judged") is not None:
        text += f" flags {safe(cell(get('flagged')))} of {safe(cell(get('n_judged')))} judged images"
        if get("alpha") is not None:
            text += f" (threshold set for a false-alarm rate of {safe(cell(get('alpha')))})"
    if get("statistic") is not None:
        text += f" gives the encoder a statistic of {safe(cell(get('statistic')))}"
        if get("p_value") is not None:
            text += f", as large for clean encoders with a probability of {safe(cell(get('p_value')))} at most"
        elif get("threshold") is not None:
            text += f" (found above {safe(cell(get('threshold')))})"
    if get("doubt"):
        text += f"; {safe(get('doubt'))}"
    if get("auroc") is not None:
        text += f"; AUROC {safe(cell(get('auroc')))}"
    if get("search_space"):
        text += f". <small>Searched: {safe(get('search_space'))}.</small>"
    return text


def _over_all(entry: Entry, kinds: dict[str, Any]) -> str:
    """Say in words what several methods came to, kind by kind."""
    told = []
    for kind, row in kinds.items():
        get = row.get if isinstance(row, dict) else {}.get
        by = f" by {safe(cell(get('found_by')))}" if get("found_by") else ""
        p_value = get("p_value")
        sure = f", corrected p-value {chance(p_value)}" if isinstance(p_value, float) else ""
        told.append(f"{safe(kind)}: <b>{safe(get('verdict'))}</b>{by}{sure}; methods run: {safe(cell(get('methods')))}")
    text = f'<a href="#{entry.slug}">{safe(entry.label)}</a>, all methods. ' + ". ".join(told)
    left_out = entry.report.results.get("not_run")
    if isinstance(left_out, list) and left_out:
        text += f". <small>{len(left_out)} more did not run; why is said below.</small>"
    return text


def _headlines(entries: Sequence[Entry]) -> Iterator[str]:
    """Write a table of all probes and one of all detectors; other reports are listed with their encoder."""
    groups: list[tuple[str, list[Entry], list[tuple[str, str]]]] = []
    left = [entry for entry in entries if "kinds" not in entry.report.results]  # whose parts are entries, too
    for title, needed, wanted in HEADLINES:
        rows = [
            entry
            for entry in left
            if any(_at(entry.report, path) is not None for _, path in ([("", needed)] if needed else wanted))
        ]
        used = [column for column in wanted if any(_at(entry.report, column[1]) is not None for entry in rows)]
        left = [entry for entry in left if not any(entry is other for other in rows)]
        groups.append((title, rows, used))
    parts = [group for group in (*groups, ("Others", left, [])) if group[1]]
    for title, rows, columns in parts:
        yield (f"<h3>{title}</h3>" if len(parts) > 1 else "") + _headline(rows, columns)


def _headline(entries: Sequence[Entry], columns: Sequence[tuple[str, str]]) -> str:
    heads = "".join(f'<th scope="col">{safe(title)}</th>' for title in ("report", "encoder", *(t for t, _ in columns)))
    clean = {str(_at(entry.report, "baseline.sha256")) for entry in entries} - {"None"}
    rows = []
    for entry in entries:
        is_clean = str(_at(entry.report, "encoder.sha256")) in clean and _at(entry.report, "asr") is not None
        shown = {"encoder": _encoder(entry.report) + (" <small>is the clean one</small>" if is_clean else "")}
        shown |= {title: _figure(entry.report, path) + _beside(entry.report, path, is_clean) for title, path in columns}
        cells = "".join(f'<td data-label="{safe(title)}"><span>{text}</span></td>' for title, text in shown.items())
        rows.append(f'<tr><th scope="row"><a href="#{entry.slug}">{safe(entry.label)}</a></th>{cells}</tr>')
    return table("headline", heads, "\n".join(rows))


def _beside(report: Report, path: str, is_clean: bool) -> str:
    """Write the clean encoder's number, which a probe's own one is to be held against."""
    if path not in BESIDE or _at(report, path) is None or is_clean:
        return ""
    value = _at(report, f"baseline.{path}")
    if value is None:
        return " <small>clean encoder not measured</small>" if path == "asr" else ""
    return f" <small>clean encoder {_rate(value['value'] if is_interval(value) else value)}</small>"


def _figure(report: Report, path: str) -> str:
    """Write one number of a headline table: the value large, its interval small."""
    value = _at(report, path)
    if value is None:
        return f'<span class="none">{MISSING}</span>'
    if path == "verdict":
        return _badge(value)
    if path == "method":
        return safe(str(value).split(":")[0])
    if is_interval(value):
        low, high = (_rate(value[key]) for key in ("low", "high"))
        return f"<b>{_rate(value['value'])}</b> <small>[{low}, {high}]</small>"
    return f"<b>{_rate(value, sign='+' if path == 'lift' else '')}</b>"


def _rate(value: Any, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("-", "−") if isinstance(value, float) and abs(value) <= 1 else safe(cell(value))


def _encoder(report: Report) -> str:
    arch, digest = _at(report, "encoder.arch"), _at(report, "encoder.sha256")
    if digest is None:
        return f'<span class="none">{MISSING}</span>'
    return f"{safe(str(arch or '').split(':')[0])} <code>{safe(str(digest)[:8])}</code>"


def _at(report: Report, path: str) -> Any:
    value: Any = report.results
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


# --- one report ---------------------------------------------------------------------------------------------------


def _section(entry: Entry, shown: dict[bytes, str]) -> Iterator[str]:
    report = entry.report
    yield f'<section id="{entry.slug}"><h2>{safe(entry.label)} <small>{safe(report.command)}</small></h2>'
    yield from _figures(entry.slug, entry.pictures, shown)
    yield f"<details{'' if entry.pictures else ' open'}><summary>All numbers</summary>{_numbers(report)}</details>"
    yield "<details><summary>Lineage: the commands that made it</summary>"
    yield f"<p>Content digest of this report: <code>{safe(entry.digest or report.sha256)}</code></p>"
    yield "".join(_steps(report.history, set())) + "</details></section>"


def _figures(slug: str, pictures: Sequence[Picture], shown: dict[bytes, str]) -> Iterator[str]:
    """Embed each picture once: where an equal one is on the page already, say where."""
    if pictures:
        yield '<div class="figures">'
    for picture in pictures:
        anchor = f"{slug}-{picture.name}"
        caption = f"<figcaption>{safe(picture.caption)}</figcaption>"
        if picture.png in shown:
            yield f'<p class="same">{safe(picture.caption)} <a href="#{shown[picture.png]}">The same as above.</a></p>'
            continue
        shown[picture.png] = anchor
        data = base64.b64encode(picture.png).decode("ascii")
        # the PNG header says how large it is
        width, height = (round(int.from_bytes(picture.png[at : at + 4], "big") * SCALE) for at in (16, 20))
        yield (
            f'<figure id="{anchor}" class="{"fixed" if picture.fixed else "chart"}">'
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{safe(picture.caption)}">'
            f"{caption}</figure>"
        )
    if pictures:
        yield "</div>"


def _numbers(report: Report) -> str:
    """Write every result, known or not, as tables."""
    keys = sorted(report.results, key=lambda key: (ORDER.index(key) if key in ORDER else len(ORDER), key))
    results = {key: report.results[key] for key in keys}
    rows = "".join(f'<tr><th scope="row">{safe(name)}</th><td>{safe(text)}</td></tr>' for name, text in lines(results))
    text = table("pairs", "", rows) if rows else ""
    for title, columns, cells in tables(results):
        heads = "".join(f'<th scope="col">{safe(label(name))}</th>' for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{safe(text)}</td>" for text in row) + "</tr>" for row in cells)
        text += f"<h3>{safe(title)}</h3>" + table("rows", heads, body)
    return text or "<p>It holds no results.</p>"


# --- where it comes from ------------------------------------------------------------------------------------------


def _steps(history: History, seen: set[str]) -> Iterator[str]:
    """List the commands of a history in order, each with its inputs; a side input's own history is shown once."""
    if not history:
        yield "<p>No history: it was not made by sslbd commands.</p>"
        return
    yield '<ol class="steps">'
    for entry in history:
        made = " · ".join(f"{key} {entry[key]}" for key in ("version", "torch", "device") if key in entry)
        yield f"<li><code>{safe(command_line(entry))}</code> <small>{safe(made)}</small>"
        if entry["inputs"]:
            yield '<ul class="inputs">' + "".join(_input(row, seen) for row in entry["inputs"]) + "</ul>"
        yield "</li>"
    yield "</ol>"


def _input(row: dict[str, Any], seen: set[str]) -> str:
    what = " ".join(str(row[key]) for key in ("kind", "file") if key in row)
    text = f"{safe(row['option'])}: {safe(what)} <code>{safe(row['sha256'])}</code>"
    if row.get("history") and row["sha256"] in seen:
        text += " <small>(made as above)</small>"
    elif row.get("history"):
        seen.add(row["sha256"])
        text += f"<details><summary>made by</summary>{''.join(_steps(row['history'], seen))}</details>"
    return f"<li>{text}</li>"


def _environment(entries: Sequence[Entry]) -> Iterator[str]:
    """Say what every report was computed with, from its history alone."""
    names = {"version": "sslbd", "torch": "torch", "device": "device"}
    rows = ""
    for entry in (each for each in entries if not each.is_part):
        history = entry.report.history
        columns = [[step[key] for step in history if key in step] for key in names]
        columns.append([step["args"]["--precision"] for step in history if "--precision" in step["args"]])
        cells = [", ".join(dict.fromkeys(map(str, column))) or MISSING for column in columns]
        row = "".join(f"<td>{safe(text)}</td>" for text in cells)
        rows += f'<tr><th scope="row">{safe(entry.label)}</th>{row}</tr>'
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("report", *names.values(), "precision"))
    yield f"<section><h2>Environment</h2>{table('rows', heads, rows)}</section>"


def _glossary() -> Iterator[str]:
    yield '<section><h2>Words</h2><dl class="words">'
    yield from (f"<dt>{safe(word)}</dt><dd>{safe(meaning)}</dd>" for word, meaning in WORDS)
    yield "</dl><p><small>Every definition: man sslbd-metrics</small></p></section>"
