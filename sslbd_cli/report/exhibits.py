"""Make entries of reports: name them after their files, and split reports of several methods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sslbd_cli.artefacts.kinds import Encoder, Report
from sslbd_cli.artefacts.parts import split
from sslbd_cli.artefacts.results import CombinedResults
from sslbd_cli.errors import InputError
from sslbd_cli.report.html import Entry


def entries(paths: Sequence[str], reports: Sequence[Report]) -> list[Entry]:
    """Return the entries of a page in order, still without figures."""
    return [part for name, report in zip(_labels(paths), reports, strict=True) for part in _apart(*name, report)]


def of_encoder(entries: Sequence[Entry], encoder: Encoder) -> list[tuple[str, Report]]:
    """Return label and report of each probe and single method. Raises InputError for a report on another encoder."""
    for entry in entries:
        judged_encoder = entry.results.encoder
        if judged_encoder is None or judged_encoder.sha256 != encoder.sha256:
            raise InputError(f"{entry.label}: this report is on another encoder than --card; leave it out")
    return [(entry.label, entry.report) for entry in entries if not isinstance(entry.results, CombinedResults)]


def _labels(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return label and unique slug of each report: the name of its file, with the folder if two names are equal."""
    stems = ["standard input" if path == "-" else Path(path).stem for path in paths]
    count, used = Counter(stems), Counter[str]()
    slugs = []
    for path, stem in zip(paths, stems, strict=True):
        label = f"{Path(path).resolve().parent.name}/{stem}" if count[stem] > 1 else stem
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-") or "report"
        used[slug] += 1
        if used[slug] > 1:
            label, slug = f"{label} ({used[slug]})", f"{slug}-{used[slug]}"
        slugs.append((label, slug))
    return slugs


def _apart(label: str, slug: str, report: Report) -> list[Entry]:
    """Split a report of several methods into the whole and its methods. Any other report makes one entry."""
    parts = split(report)
    if not parts:
        return [Entry(label, slug, report)]
    results = {key: value for key, value in report.results.items() if key != "methods"}
    whole = Report(command=report.command, results=results, history=report.history)
    methods = [
        Entry(f"{label}: {name}", f"{slug}-method-{number}", part, is_part=True, digest=report.sha256)
        for number, (name, part) in enumerate(parts, 1)
    ]
    return [Entry(label, slug, whole, digest=report.sha256), *methods]
