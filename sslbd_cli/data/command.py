"""Make a dataset of images from a generator, a folder, an archive or a public collection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.data.source import Made, Source

SHOWN = 20  # corrupt images named; the rest are counted


@options.command(
    "data",
    examples=(
        "sslbd data shapes --count 4000 --size 32 --seed 1 -o shapes.h5",
        "sslbd data shapes --count 1000 --per-class 50 | sslbd info",
        "sslbd data shapes --count 1000 --part 1/5 -o held.h5",
    ),
    shelf="source",
)
@click.argument("name", type=Spec("source"), default="shapes", metavar="[NAME]")
@click.argument("source", type=options.ArtefactPath(), required=False)
@click.option(
    "--split", metavar="SPLIT", help="Which part of the data, such as train; leave it out to see which there are."
)
@click.option("--size", type=click.IntRange(4, 4096), metavar="PIXELS",
              help="Scale the shorter side to this and keep the centre square.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, 1 << 30), metavar="N", help="Draw N images (shapes).")
@click.option("--classes", metavar="NAME,NAME,...", help="Keep these classes alone.")
@click.option("--part", metavar="K/N", help="Take the K-th of N random parts, or with J-K/N those from J to K.")
@click.option("--per-class", type=click.IntRange(min=1), metavar="N", help="Take a random N images of each class.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take a random N images in all.")
@click.option("--root", metavar="FOLDER", help="Where torchvision keeps its datasets; where a filelist's paths start.")
@click.option("--download", is_flag=True, help="Fetch a torchvision dataset into --root where it is missing.")
@click.option("--captions", is_flag=True, help="Give each image the text that the source has for it.")
@click.option("--caption", metavar="TEXT", multiple=True,
              help="Give each image this text, {} for the name of its class; repeated, one of them.")  # fmt: skip
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded, and list them.")
@options.seed
@options.output
def command(run: Run, name: Source, source: str | None, root: str | None, output: str, **params: Any) -> None:
    """Make a dataset of images: NAME is a source (shapes unless given), SOURCE the file or folder it reads.

    Give `sslbd data folder PHOTOS --split train --size 96` a folder of class folders, or a zip or tar archive of one;
    `sslbd data NAME:help` explains a source. Subsets are drawn from the seed and keep the order of the whole: first
    --classes, then --part, --per-class and --limit. Parts of the same source and --classes, drawn by one seed, share no
    image, so that what a defender holds can be kept apart from what was trained on. Images become RGB; their sizes must
    be equal unless --size makes them so.
    """
    from sslbd_cli.data.source import SourceWish

    refuse_terminal(output)
    names = tuple(filter(None, (params.pop("classes") or "").split(",")))
    wish = SourceWish(path=_path(source), root=_path(root), watch=run.progress, classes=names, **params)
    made = name(wish)
    _report(run, made)
    if source is not None:
        run.note_file("INPUT", os.path.abspath(source), made.digest)
    elif root is not None:
        run.note_file("--root", os.path.abspath(root), made.digest)
    height, width = made.dataset.images.shape[2:]
    resolved = {
        "size": int(width) if width == height else None,
        "count": made.count if "--count" in name.takes else None,
    }
    run.write(made.dataset, output, download=None, **resolved)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _report(run: Run, made: Made) -> None:
    """Say what the dataset holds, and warn of each corrupt image that was left out, up to SHOWN."""
    if made.skipped:
        run.warn(f"left out {len(made.skipped)} corrupt image{'s' * (len(made.skipped) != 1)}")
        for path, why in made.skipped[:SHOWN]:
            run.warn(f"left out {path}: {why}")
        if len(made.skipped) > SHOWN:
            run.warn(f"left out {len(made.skipped) - SHOWN} more")
    run.say(_describe(made.dataset))


def _describe(dataset: Dataset) -> str:
    """Describe a dataset in a line: images, size in pixels, classes and how many images each has."""
    count = len(dataset.images)
    line = f"{count} image{'s' * (count != 1)} of {dataset.extent}"
    line += "" if dataset.captions is None else " with captions"
    if dataset.labels is None:
        return f"{line}, no labels"
    import numpy as np

    per_class = np.bincount(dataset.labels, minlength=len(dataset.classes))
    low, high = int(per_class.min()), int(per_class.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    classes = len(dataset.classes)
    return f"{line}, {classes} class{'es' * (classes != 1)} of {each}"
