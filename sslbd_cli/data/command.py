"""Make a dataset of images from a generator, a folder, an archive or a public collection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec
from sslbd_cli.words import split_commas

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.data.source import Made, Source

SHOWN = 20  # corrupt images to name; the rest are counted


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
    "--split", metavar="SPLIT", help="Part of the data, such as train; without it the error lists the splits."
)
@click.option("--size", type=click.IntRange(4, 4096), metavar="PIXELS",
              help="Scale the shorter side to PIXELS and keep the centre square.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, 1 << 30), metavar="N", help="Draw N images (shapes).")
@click.option("--classes", metavar="NAME,NAME,...", help="Keep only these classes. Write \\, for a comma in a name.")
@options.artefact("--classes-of", help="Number the classes as this dataset does, by name, such as a training set.")
@click.option("--part", metavar="K/N", help="Take the K-th of N random parts; J-K/N takes parts J to K.")
@click.option("--per-class", type=options.Whole(1), metavar="N", help="Take N random images of each class.")
@click.option("--limit", type=options.Whole(1), metavar="N", help="Take N random images in all.")
@click.option("--root", metavar="FOLDER", help="Folder of torchvision's datasets, or of a filelist's paths.")
@click.option("--download", is_flag=True, help="Download a torchvision dataset into --root if it is missing.")
@click.option("--captions", is_flag=True, help="Store the source's caption of each image.")
@click.option("--caption", metavar="TEXT", multiple=True,
              help="Caption of each image; {} is the name of its class. Repeat to draw from several.")  # fmt: skip
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded, and list them.")
@click.option("--no-exif", is_flag=True, help="Keep images as stored, not turned as their EXIF orientation says.")
@click.option("--max-pixels", type=click.IntRange(1, 1 << 32), metavar="N",
              help="Decode up to N pixels; with --size, larger JPEGs at a fraction.  [default: 89478485]")  # fmt: skip
@options.seed
@options.output
def command(
    run: Run, name: Source, source: str | None, root: str | None, classes_of: str | None, output: str, **params: Any
) -> None:
    """Make a dataset of images: NAME is a source (default: shapes), SOURCE the file or folder that it reads.

    Example: `sslbd data folder PHOTOS --split train --size 96`, where PHOTOS is a folder of class folders, or a zip or
    tar archive of one. `sslbd data NAME:help` explains a source. Subsets are drawn from the seed, in this order:
    --classes, --part, --per-class, --limit; images keep their order. Parts of the same source, --classes and seed
    share no image, so a defender's images can be kept apart from the training images.

    Images become 8-bit RGB. They must have equal sizes, unless --size scales them. They are turned as their EXIF
    orientation says. Transparency is dropped: the stored colours count, as in torchvision. Of 16-bit samples the high
    byte counts. Images of floats or 32-bit integers are corrupt, because their range is not defined. A file that is
    missing or cannot be read is no corrupt image, so --skip-corrupt does not hide it.
    """
    from sslbd_cli.data.source import SourceWish

    refuse_terminal(output)
    names = tuple(filter(None, split_commas(params.pop("classes") or "")))
    named_as = _classes_of(run, classes_of) if classes_of else ()
    wish = SourceWish(
        path=_path(source), typed=source or "", root=_path(root), watch=run.progress, say=run.say, classes=names,
        named_as=named_as, **params,
    )  # fmt: skip
    outcome = name(wish)
    _report(run, outcome)
    if source is not None:
        place = source if source.startswith("hf:") else os.path.abspath(source)
        run.note_file("INPUT", place, outcome.digest)
    elif root is not None:
        run.note_file("--root", os.path.abspath(root), outcome.digest)
    height, width = outcome.dataset.images.shape[2:]
    used_values = {
        "size": int(width) if width == height else None,
        "count": outcome.count if "--count" in name.takes else None,
    }
    run.write(outcome.dataset, output, download=None, **used_values)


def _classes_of(run: Run, path: str) -> tuple[str, ...]:
    """Return the classes of a dataset. Raises InputError if it has none."""
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.errors import InputError

    known = run.read(path, Dataset, "--classes-of").classes
    if not known:
        raise InputError(f"--classes-of {path}: the dataset has no classes; give one with labels")
    return known


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _report(run: Run, outcome: Made) -> None:
    """Describe the dataset on stderr, and warn of doubts and of each corrupt image that was left out, up to SHOWN."""
    if outcome.skipped:
        run.warn(f"left out {len(outcome.skipped)} corrupt image{'s' * (len(outcome.skipped) != 1)}")
        for path, why in outcome.skipped[:SHOWN]:
            run.warn(f"left out {path}: {why}")
        if len(outcome.skipped) > SHOWN:
            run.warn(f"left out {len(outcome.skipped) - SHOWN} more")
    for doubt in outcome.doubts:
        run.warn(doubt)
    run.say(_describe(outcome.dataset))


def _describe(dataset: Dataset) -> str:
    """Describe a dataset in one line: images, size in pixels, classes and images per class."""
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
