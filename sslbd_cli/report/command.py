"""Draw reports as one HTML page and PNG figures, as a table of attacks by detectors, or as a model card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.options import ArtefactPath
from sslbd_cli.cli.run import Run
from sslbd_cli.cli.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.report.figures import Picture
    from sslbd_cli.report.html import Entry
    from sslbd_cli.triggers._contract import Trigger


@options.command(
    "report",
    examples=(
        "sslbd report probe-clean.h5 probe-backdoored.h5 detect-backdoored.h5 -o report.html",
        "sslbd report probe-backdoored.h5 --data test.h5 --trigger patch --png figures -o report.html",
        "sslbd report probe-backdoored.h5 --card backdoored.safetensors --license mit -o README.md",
        "sslbd report cells/badencoder/0/probe.h5 cells/badencoder/0/dede.h5 --matrix md -o RESULTS.md",
    ),
)
@click.argument("reports", nargs=-1, type=ArtefactPath(), metavar="[REPORT]...")
@options.artefact("--data", help="Also show a sample of this dataset, with --trigger also triggered.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Trigger of the sample; 'help' lists.")
@click.option("--png", metavar="DIR", help="Also write every figure as a PNG file into this folder.")
@options.artefact(
    "--card", help="Write the model card (Markdown) of this encoder instead, with what reports say of it."
)
@click.option(
    "--matrix", type=click.Choice(["html", "md"]),
    help="Write a table of attacks by detectors instead, from reports kept as ATTACK/SEED/DETECTOR.h5.",
)  # fmt: skip
@click.option("--license", metavar="ID", help="License that the card names.  [default: unknown]")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where the page goes; - is a pipe.  [default: -]")
def command(run: Run, reports: tuple[str, ...], output: str, **params: Any) -> None:
    """Draw reports of probe, detect and others as one HTML page that needs no network, or write tables or a model card.

    The reports are what `sslbd probe` and `sslbd detect` write with -o. The page shows verdicts, one table over all
    probes and one over all detectors, sample images, what the detector saw, score histograms, ROC curves, every number
    and the lineage. A row is named after its file; rows keep the order given, such as before and after.

    Of a training set's detector it shows the surest images with their windows outlined, the recovered trigger, and
    precision and recall over how many are taken. A report of several methods is shown method by method.

    --card writes Hugging Face's model card: architecture, input, the commands that made the encoder, what the reports
    measured and found. An encoder is marked as backdoored, in its tags too, where its history or a report says so.

    --matrix compares detectors over attacks: a row for each attack, a column for each detector, mean and standard
    deviation over seeds. Which is which comes from folders: reports of detect as ATTACK/SEED/DETECTOR.h5, and beside
    them a report of `probe --trigger --baseline`, by which an attack counts only where it works (ASR of 0.8 or more, at
    most 3 points of accuracy lost). An ATTACK without probes is not gated: encoders and data left clean, as a control.
    """
    from sslbd_cli.artefacts.container import atomic_output
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.report import exhibits

    _check_options(output, params)
    paths = reports or (() if params["card"] is not None else ("-",))
    loaded = [run.read(path, Report, "REPORT") for path in paths]
    if params["matrix"] is not None:
        text = _matrix(paths, loaded, params["matrix"])
    elif params["card"] is not None:
        text = _card(run, exhibits.entries(paths, loaded), params)
    else:
        text = _draw(run, exhibits.entries(paths, loaded), params)
    with atomic_output(output) as file:
        file.write(text.encode())


def _check_options(output: str, params: dict[str, Any]) -> None:
    """Raise InputError where options do not go together."""
    from sslbd_cli.errors import InputError

    card, data, matrix = params["card"], params["data"], params["matrix"]
    if output == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal: name a file with -o report.html, or pipe the page")
    if params["trigger"] is not None and data is None:
        raise InputError("--trigger needs the images of --data DATASET")
    if card is None and params["license"] is not None:
        raise InputError("--license is a line of the model card: give --card ENCODER too")
    if card is not None and matrix is not None:
        raise InputError("--card and --matrix are two outputs: write them by two runs")
    if (card or matrix) is not None and (data is not None or params["png"] is not None):
        option = "--matrix" if card is None else "--card"
        raise InputError(f"{option} holds no figures: leave --data and --png out, or draw them by another run")


def _draw(run: Run, entries: list[Entry], params: dict[str, Any]) -> str:
    """Draw the page, and the figures where they are wanted."""
    from dataclasses import replace

    from sslbd_cli.report import figures, html

    shared = figures.across([(entry.label, entry.report) for entry in entries])
    if params["data"] is not None:
        shared.append(_sample(run, params["data"], params["trigger"]))
    drawn = [replace(entry, pictures=figures.pictures(entry.report)) for entry in entries]
    if params["png"] is not None:
        _write_figures(Path(params["png"]), drawn, shared)
    return html.page(drawn, shared)


def _card(run: Run, entries: list[Entry], params: dict[str, Any]) -> str:
    """Write the model card."""
    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.report import card, exhibits

    encoder = run.read(params["card"], Encoder, "--card")
    name = "encoder" if params["card"] == "-" else Path(params["card"]).stem
    return card.page(card.Card(name, encoder, exhibits.of_encoder(entries, encoder), params["license"] or "unknown"))


def _matrix(paths: Sequence[str], reports: Sequence[Report], form: str) -> str:
    """Write attacks by detectors."""
    from sslbd_cli.report import matrix, tables

    drawn = matrix.tables(paths, reports)
    if form == "md":
        return tables.to_markdown(drawn)
    return tables.to_page("Attacks by detectors", f"{len(reports)} report" + "s" * (len(reports) > 1), drawn)


def _sample(run: Run, data: str, trigger: Trigger | None) -> Picture:
    """Show a dozen images from all over a dataset, clean and triggered."""
    import numpy as np
    import torch

    from sslbd_cli.artefacts.kinds import Dataset, spread
    from sslbd_cli.core.device import generator
    from sslbd_cli.report import figures

    images = run.read(data, Dataset, "--data").images
    clean = np.array(images[spread(len(images), figures.SHEET)])
    if trigger is None:
        return figures.sheet(clean, None)
    return figures.sheet(clean, trigger(torch.from_numpy(clean), generator(0, "sample"), "test").images.numpy())


def _write_figures(folder: Path, entries: list[Entry], shared: list[Picture]) -> None:
    """Write figures as FOLDER/REPORT-FIGURE.png, those of all reports as FOLDER/FIGURE.png."""
    from sslbd_cli.artefacts.container import atomic_output
    from sslbd_cli.errors import InputError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--png {folder}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--png {folder}: {error.strerror or error}") from None
    files = {f"{picture.name}.png": picture for picture in shared}
    files |= {f"{entry.slug}-{picture.name}.png": picture for entry in entries for picture in entry.pictures}
    for name, picture in files.items():
        with atomic_output(str(folder / name)) as file:
            file.write(picture.png)
