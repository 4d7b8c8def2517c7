"""Folders of images, one folder per class, or an archive of them. Archives are read in place and never extracted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.data.archives import Parts, Reader, image_parts, list_images
from sslbd_cli.data.decode import ImageFile, foreign, read_file
from sslbd_cli.data.source import Catalogue, Source, SourceWish, pick_split
from sslbd_cli.errors import InputError

DEEPEST = 4  # TOP/SPLIT/CLASS/NAME


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Read CLASS/NAME or SPLIT/CLASS/NAME images from a folder, a zip, tar, tar.gz, tar.bz2 or tar.xz.

    All may lie in one more folder. Classes are the sorted names of the class folders, the same in every split. Hidden
    files, links inside archives and files that are not images are left out.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--split", "--skip-corrupt")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        path = wish.path
        assert path is not None
        with foreign("a folder of images or a zip or tar archive of one"):
            if path.is_dir():
                readers = dict(_walk(str(path), ()))
            else:
                readers = list_images(path, lambda parts: wish.split in (None, *parts[:2]), wish.watch)
        classes, paths = arrange(set(readers), wish.split)
        index = {name: number for number, name in enumerate(classes)}
        return Catalogue(
            classes=classes,
            labels=np.array([index[parts[-2]] for parts in paths], np.int64),
            files=[ImageFile("/".join(parts), readers[parts]) for parts in paths],
            sealed=not path.is_dir(),
        )


def arrange(paths: set[Parts], split: str | None) -> tuple[Parts, list[Parts]]:
    """Find the layout. Return the sorted classes of all splits, and the split's paths sorted by class and name.

    Raises InputError for a mixed or unknown layout, and for a split that is missing, unknown or not possible.
    """
    if not paths:
        raise InputError("no images in class folders here; expected CLASS/NAME or SPLIT/CLASS/NAME")
    shallow, deep = (min(paths, key=lambda parts: (sign * len(parts), parts)) for sign in (1, -1))
    depth, tops = len(deep), {parts[0] for parts in paths}
    if not 2 <= len(shallow) == depth <= DEEPEST or (depth == DEEPEST and len(tops) > 1):
        examples = " and ".join(dict.fromkeys(("/".join(shallow), "/".join(deep))))
        raise InputError(f"cannot tell the layout from {examples}: expected CLASS/NAME or SPLIT/CLASS/NAME")
    level = depth - 3  # position of the split in a path
    splits = sorted({parts[level] for parts in paths}) if level >= 0 else []
    if split is not None and not splits:
        raise InputError(f"--split {split}: there are no splits here, the layout is CLASS/NAME; leave --split out")
    if split is not None or len(splits) > 1:
        split = pick_split(split, splits)
    classes = tuple(sorted({parts[-2] for parts in paths}))
    split_paths = sorted((parts for parts in paths if split is None or parts[level] == split), key=lambda p: p[-2:])
    return classes, split_paths


def _walk(folder: str, above: Parts) -> Iterator[tuple[Parts, Reader]]:
    """List the images of a folder. Links are followed, because they are the user's own; pipes and devices are not."""
    with os.scandir(folder) as entries:
        for entry in entries:
            here = (*above, entry.name)
            if entry.is_dir() and len(here) <= DEEPEST and not entry.name.startswith("."):
                yield from _walk(entry.path, here)
            elif image_parts(entry.name) and entry.is_file():
                yield here, functools.partial(read_file, entry.path)
