"""Draw reports as one HTML page and PNG figures."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.options import ArtefactPath
from sslbd_cli.ui.run import Run
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.bases import Trigger
    from sslbd_cli.ui.figures import Picture
    from sslbd_cli.ui.html import Entry


@options.command(
    "report",
    examples=(
        "sslbd report probe-clean.h5 probe-backdoored.h5 detect-backdoored.h5 -o report.html",
        "sslbd report probe-backdoored.h5 --data test.h5 --trigger patch --png figures -o report.html",
    ),
)
@click.argument("reports", nargs=-1, type=ArtefactPath(), metavar="[REPORT]...")
@options.artefact("--data", help="Also show a sample of this dataset, with --trigger also triggered.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Trigger of the sample; 'help' lists.")
@click.option("--png", metavar="DIR", help="Also write every figure as a PNG file into this folder.")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where the page goes; - is a pipe.  [default: -]")
def command(
    run: Run, reports: tuple[str, ...], data: str | None, trigger: Trigger | None, png: str | None, output: str
) -> None:
    """Draw reports of probe, detect and others as one HTML page that needs no network.

    The reports are what `sslbd probe` and `sslbd detect` write with -o. The page shows verdicts, one table over all
    probes and one over all detectors, sample images, what the detector saw, score histograms, ROC curves, every number
    and the lineage. A row is named after its file; rows keep the order given, such as before and after.

    Of a training set's detector it shows the surest images with their windows outlined, the recovered trigger, and
    precision and recall over how many are taken.
    """
    from sslbd_cli.core.artefact import Report
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.storage import atomic_output
    from sslbd_cli.ui import figures, html

    if output == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal: name a file with -o report.html, or pipe the page")
    if trigger is not None and data is None:
        raise InputError("--trigger needs the images of --data DATASET")
    paths = reports or ("-",)
    found = [run.read(path, Report, "REPORT") for path in paths]
    named = _labels(paths)
    shared = figures.across([(label, report) for (label, _), report in zip(named, found, strict=True)])
    if data is not None:
        shared.append(_sample(run, data, trigger))
    entries = [html.Entry(*name, report, figures.pictures(report)) for name, report in zip(named, found, strict=True)]
    if png is not None:
        _write_figures(Path(png), entries, shared)
    with atomic_output(output) as file:
        file.write(html.page(entries, shared).encode())


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
