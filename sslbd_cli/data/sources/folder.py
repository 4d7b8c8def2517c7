"""Folders of images, one folder per class, or an archive of them. Archives are read in place and never extracted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.artefacts.files import read_file
from sslbd_cli.data.archives import Parts, Reader, image_parts, list_images
from sslbd_cli.data.decode import ImageFile, foreign
from sslbd_cli.data.layouts import arrange
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish
from sslbd_cli.words import first_names

DEEPEST = 5  # TOP/SPLIT/CLASS/images/NAME


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Read images from a folder, a zip, tar, tar.gz, tar.bz2 or tar.xz, with class folders or without.

    Layouts: CLASS/NAME, SPLIT/CLASS/NAME, and without labels NAME and SPLIT/NAME. All may lie in one more folder. A
    folder `images` above all names is no class (Tiny ImageNet: CLASS/images/NAME). Classes are the sorted names of the
    class folders, the same in every split. A few images beside the class folders are left out, and counted. Hidden
    files, links inside archives and files that are not images are left out.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--split", *FILE_OPTIONS)
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        path = wish.path
        assert path is not None
        with foreign("a folder of images or a zip or tar archive of one"):
            if path.is_dir():
                readers = dict(_walk(str(path), ()))
            else:
                readers = list_images(path, lambda parts: wish.split in (None, *parts[:2]), wish.watch)
        layout = arrange(set(readers), wish.split)
        return Catalogue(
            classes=layout.classes,
            labels=None if layout.labels is None else np.array(layout.labels, np.int64),
            files=[ImageFile("/".join(parts), readers[parts]) for parts in layout.paths],
            sealed=not path.is_dir(),
            doubts=_stray(layout.stray),
        )


def _stray(paths: Sequence[Parts]) -> tuple[str, ...]:
    if not paths:
        return ()
    many = f"{len(paths)} images that lie" if len(paths) > 1 else "an image that lies"
    return (f"left out {many} beside the folders: {first_names(list(map('/'.join, paths)), 3)}",)


def _walk(folder: str, above: Parts) -> Iterator[tuple[Parts, Reader]]:
    """List the images of a folder. Links are followed, because they are the user's own; pipes and devices are not."""
    with os.scandir(folder) as entries:
        for entry in entries:
            here = (*above, entry.name)
            if entry.is_dir() and len(here) <= DEEPEST and not entry.name.startswith("."):
                yield from _walk(entry.path, here)
            elif image_parts(entry.name) and entry.is_file():
                yield here, functools.partial(read_file, entry.path)
