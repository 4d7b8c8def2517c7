"""Draw reports as one HTML page and PNG figures, or write an encoder's model card."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.options import ArtefactPath
from sslbd_cli.ui.run import Run
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Report
    from sslbd_cli.core.bases import Trigger
    from sslbd_cli.ui.figures import Picture
    from sslbd_cli.ui.html import Entry

    Row = tuple[str, str, Report, bool]  # label, slug, report, and whether it is part of the one before


@options.command(
    "report",
    examples=(
        "sslbd report probe-clean.h5 probe-backdoored.h5 detect-backdoored.h5 -o report.html",
        "sslbd report probe-backdoored.h5 --data test.h5 --trigger patch --png figures -o report.html",
        "sslbd report probe-backdoored.h5 --card backdoored.safetensors --license mit -o README.md",
    ),
)
@click.argument("reports", nargs=-1, type=ArtefactPath(), metavar="[REPORT]...")
@options.artefact("--data", help="Also show a sample of this dataset, with --trigger also triggered.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Trigger of the sample; 'help' lists.")
@click.option("--png", metavar="DIR", help="Also write every figure as a PNG file into this folder.")
@options.artefact(
    "--card", help="Write the model card (Markdown) of this encoder instead, with what reports say of it."
)
@click.option("--license", metavar="ID", help="License that the card names.  [default: unknown]")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where the page goes; - is a pipe.  [default: -]")
def command(run: Run, reports: tuple[str, ...], output: str, **params: Any) -> None:
    """Draw reports of probe, detect and others as one HTML page that needs no network, or write a model card.

    The reports are what `sslbd probe` and `sslbd detect` write with -o. The page shows verdicts, one table over all
    probes and one over all detectors, sample images, what the detector saw, score histograms, ROC curves, every number
    and the lineage. A row is named after its file; rows keep the order given, such as before and after.

    Of a training set's detector it shows the surest images with their windows outlined, the recovered trigger, and
    precision and recall over how many are taken. A report of several methods is shown method by method.

    --card writes Hugging Face's model card: architecture, input, the commands that made the encoder, what the reports
    measured and found. An encoder is marked as backdoored, in its tags too, where its history or a report says so.
    """
    from sslbd_cli.core.artefact import Report
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.storage import atomic_output

    card, data, trigger, png = (params[name] for name in ("card", "data", "trigger", "png"))
    if output == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal: name a file with -o report.html, or pipe the page")
    if trigger is not None and data is None:
        raise InputError("--trigger needs the images of --data DATASET")
    if card is None and params["license"] is not None:
        raise InputError("--license is a line of the model card: give --card ENCODER too")
    if card is not None and (data is not None or png is not None):
        raise InputError("--card holds no figures: leave --data and --png out, or draw them by another run")
    paths = reports or (() if card is not None else ("-",))
    found = [run.read(path, Report, "REPORT") for path in paths]
    rows = [part for name, report in zip(_labels(paths), found, strict=True) for part in _apart(*name, report)]
    text = _draw(run, rows, params) if card is None else _card(run, rows, params)
    with atomic_output(output) as file:
        file.write(text.encode())


def _draw(run: Run, rows: list[Row], params: dict[str, Any]) -> str:
    """Draw the page, and the figures where they are wanted."""
    from sslbd_cli.ui import figures, html

    shared = figures.across([(label, report) for label, _, report, _ in rows])
    if params["data"] is not None:
        shared.append(_sample(run, params["data"], params["trigger"]))
    entries = [
        html.Entry(label, slug, report, figures.pictures(report), is_part) for label, slug, report, is_part in rows
    ]
    if params["png"] is not None:
        _write_figures(Path(params["png"]), entries, shared)
    return html.page(entries, shared)


def _card(run: Run, rows: list[Row], params: dict[str, Any]) -> str:
    """Write the model card. Raises InputError for a report of another encoder."""
    from sslbd_cli.core.artefact import Encoder
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.ui.card import Card, page

    encoder = run.read(params["card"], Encoder, "--card")
    for label, _, report, _ in rows:
        named = report.results.get("encoder")
        if not isinstance(named, dict) or named.get("sha256") != encoder.sha256:
            raise InputError(f"{label}: is no report of the encoder of --card (its content differs); leave it out")
    name = "encoder" if params["card"] == "-" else Path(params["card"]).stem
    told = [(label, report) for label, _, report, _ in rows if "kinds" not in report.results]  # whose parts are told
    return page(Card(name, encoder, told, params["license"] or "unknown"))


def _labels(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name reports after their files, with the folder where two have the same name: label and unique slug of each."""
    stems = ["standard input" if path == "-" else Path(path).stem for path in paths]
    count, used = Counter(stems), Counter[str]()
    named = []
    for path, stem in zip(paths, stems, strict=True):
        label = f"{Path(path).resolve().parent.name}/{stem}" if count[stem] > 1 else stem
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-") or "report"
        used[slug] += 1
        if used[slug] > 1:
            label, slug = f"{label} ({used[slug]})", f"{slug}-{used[slug]}"
        named.append((label, slug))
    return named


def _apart(label: str, slug: str, report: Report) -> list[Row]:
    """Take a report of several methods apart, into the whole without its methods and each of them; any other stays."""
    from sslbd_cli.core.artefact import Report
    from sslbd_cli.core.screen import split

    parts = split(report)
    if not parts:
        return [(label, slug, report, False)]
    results = {key: value for key, value in report.results.items() if key != "methods"}
    rows: list[Row] = [(label, slug, Report(command=report.command, results=results, history=report.history), False)]
    for number, (name, part) in enumerate(parts, 1):
        rows.append((f"{label}: {name}", f"{slug}-method-{number}", part, True))
    return rows


def _sample(run: Run, data: str, trigger: Trigger | None) -> Picture:
    """Show a dozen images from all over a dataset, clean and triggered."""
    import numpy as np
    import torch

    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.device import generator
    from sslbd_cli.ui import figures

    images = run.read(data, Dataset, "--data").images
    clean = np.array(images[np.linspace(0, len(images) - 1, min(figures.SHEET, len(images))).astype(int)])
    if trigger is None:
        return figures.sheet(clean, None)
    return figures.sheet(clean, trigger(torch.from_numpy(clean), generator(0, "sample"), "test").images.numpy())


def _write_figures(folder: Path, entries: list[Entry], shared: list[Picture]) -> None:
    """Write figures as FOLDER/REPORT-FIGURE.png, those of all reports as FOLDER/FIGURE.png."""
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.storage import atomic_output

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--png {folder}: {error.strerror or error}") from None
    files = {f"{picture.name}.png": picture for picture in shared}
    files |= {f"{entry.slug}-{picture.name}.png": picture for entry in entries for picture in entry.pictures}
    for name, picture in files.items():
        with atomic_output(str(folder / name)) as file:
            file.write(picture.png)
