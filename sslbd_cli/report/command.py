"""Draw reports as one HTML page and PNG figures, as tables of attacks by detectors, or as a model card."""

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
@options.artefact("--data", help="Also show sample images of this dataset, and with --trigger triggered ones.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Trigger on the sample images; 'help' lists.")
@click.option("--png", metavar="DIR", help="Also write each figure as a PNG into this folder.")
@options.artefact(
    "--card", help="Write the model card of this encoder (Markdown), with the reports' results, instead of the page."
)
@click.option(
    "--matrix", type=click.Choice(["html", "md"]),
    help="Write tables of attacks by detectors instead, from reports saved as ATTACK/SEED/DETECTOR.h5.",
)  # fmt: skip
@click.option("--license", metavar="ID", help="License that the card states.  [default: unknown]")
@click.option(
    "-o", "--output", default="-", metavar="FILE", help="Where the page goes; - is standard output.  [default: -]"
)
def command(run: Run, reports: tuple[str, ...], output: str, **params: Any) -> None:
    """Draw reports of probe, detect and others as one HTML page that needs no network, or write tables or a model card.

    `sslbd probe` and `sslbd detect` write the reports with -o. The page shows the verdicts, one table of all probes,
    one table of all detectors, sample images, the detector's pictures, score histograms, ROC curves, every number and
    the lineage. Rows are named after the files and keep their order.

    For a detector of training images, the page shows the most suspicious images with their windows outlined, the
    recovered trigger, and precision and recall of the k images of highest score. A report of several methods is shown
    method by method.

    --card writes Hugging Face's model card: the architecture, the input, the commands that made the encoder, and the
    reports' measurements and verdicts. If the history or a report says that the encoder is backdoored, the text and
    the tags of the card say so.

    --matrix compares detectors over attacks. Each row is an attack, each column a detector, each cell the mean and
    standard deviation over seeds. Folders name them: save reports of detect as ATTACK/SEED/DETECTOR.h5. Save a report
    of `probe --trigger --baseline` beside them: a run then counts only if its attack works (an ASR of at least 0.8, at
    most 3 points of accuracy lost). All runs of an ATTACK without probes count: use it for clean encoders and clean
    data, the controls.
    """
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.artefacts.outputs import atomic_output, together
    from sslbd_cli.report import exhibits

    _check_options(output, params)
    paths = reports or (() if params["card"] is not None else ("-",))
    loaded = [run.read(path, Report, "REPORT") for path in paths]
    with together():
        if params["matrix"] is not None:
            text = _matrix(paths, loaded, params["matrix"])
        elif params["card"] is not None:
            text = _card(run, exhibits.entries(paths, loaded), params)
        else:
            text = _draw(run, exhibits.entries(paths, loaded), params)
        with atomic_output(output) as file:
            file.write(text.encode())


def _check_options(output: str, params: dict[str, Any]) -> None:
    """Raise InputError for options that do not go together."""
    from sslbd_cli.errors import InputError

    card, data, matrix = params["card"], params["data"], params["matrix"]
    if output == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal; name a file with -o report.html, or pipe the page")
    if params["trigger"] is not None and data is None:
        raise InputError("--trigger needs the images of --data DATASET")
    if card is None and params["license"] is not None:
        raise InputError("--license is a line of the model card; give --card ENCODER too")
    if card is not None and matrix is not None:
        raise InputError("--card and --matrix are two outputs; write them in two runs")
    if (card or matrix) is not None and (data is not None or params["png"] is not None):
        option = "--matrix" if card is None else "--card"
        raise InputError(f"{option} holds no figures; leave --data and --png out, or draw them in another run")


def _draw(run: Run, entries: list[Entry], params: dict[str, Any]) -> str:
    """Draw the page, and write the figures if --png asks for them."""
    from dataclasses import replace

    from sslbd_cli.report import figures, html

    shared = figures.across([(entry.label, entry.report) for entry in entries])
    if params["data"] is not None:
        shared.append(_sample(run, params["data"], params["trigger"]))
    illustrated = [replace(entry, pictures=figures.pictures(entry.report)) for entry in entries]
    if params["png"] is not None:
        _write_figures(Path(params["png"]), illustrated, shared)
    return html.page(illustrated, shared)


def _card(run: Run, entries: list[Entry], params: dict[str, Any]) -> str:
    """Write the model card."""
    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.report import card, exhibits

    encoder = run.read(params["card"], Encoder, "--card")
    name = "encoder" if params["card"] == "-" else Path(params["card"]).stem
    return card.page(card.Card(name, encoder, exhibits.of_encoder(entries, encoder), params["license"] or "unknown"))


def _matrix(paths: Sequence[str], reports: Sequence[Report], form: str) -> str:
    """Write the tables of attacks by detectors, as Markdown or as a web page."""
    from sslbd_cli.report import matrix, tables

    matrix_tables = matrix.tables(paths, reports)
    if form == "md":
        return tables.to_markdown(matrix_tables)
    return tables.to_page("Attacks by detectors", f"{len(reports)} report" + "s" * (len(reports) > 1), matrix_tables)


def _sample(run: Run, data: str, trigger: Trigger | None) -> Picture:
    """Draw a dozen images spread over a dataset, and the same images triggered if there is a trigger."""
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
    """Write the figures of a report as FOLDER/REPORT-FIGURE.png, and those of all reports as FOLDER/FIGURE.png."""
    from sslbd_cli.artefacts.outputs import atomic_output
    from sslbd_cli.errors import InputError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--png {folder}: expected a folder, got a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--png {folder}: {error.strerror or error}") from None
    files = {f"{picture.name}.png": picture for picture in shared}
    files |= {f"{entry.slug}-{picture.name}.png": picture for entry in entries for picture in entry.pictures}
    for name, picture in files.items():
        with atomic_output(str(folder / name)) as file:
            file.write(picture.png)
