"""Folders of images, one folder per class, or an archive of them. Archives are read in place and never extracted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.artefacts.files import read_file
from sslbd_cli.data.archives import Parts, Reader, is_hidden, list_files
from sslbd_cli.data.decode import ImageFile, foreign
from sslbd_cli.data.layouts import arrange
from sslbd_cli.data.leftovers import doubts, is_image
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish
from sslbd_cli.errors import InputError

DEEPEST = 5  # TOP/SPLIT/CLASS/images/NAME


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Read images from a folder, a zip, tar, tar.gz, tar.bz2 or tar.xz, with class folders or without.

    Layouts: CLASS/NAME, SPLIT/CLASS/NAME, and without labels NAME and SPLIT/NAME. All may lie in one more folder. A
    folder `images` above all names is no class (Tiny ImageNet: CLASS/images/NAME). Classes are the sorted names of the
    class folders, the same in every split. Links inside an archive are followed. Hidden files are left out, and with
    a warning links that lead elsewhere, unknown suffixes, and a few images beside the class folders.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--split", *FILE_OPTIONS)
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        path = wish.path
        assert path is not None
        with foreign("a folder of images or a zip or tar archive of one"):
            if path.is_dir():
                walk = _Walk()
                files, lost = dict(walk.files(str(path), ())), walk.lost
            else:
                files, lost = list_files(path, lambda parts: _is_wanted(parts, wish.split), wish.watch)
        readers = {parts: reader for parts, reader in files.items() if is_image(parts[-1])}
        others = [parts[-1] for parts in files if parts not in readers]
        if not readers:
            raise InputError("; ".join(("no images here", *doubts(others, lost, ()))))
        layout = arrange(set(readers), wish.split)
        return Catalogue(
            classes=layout.classes,
            labels=None if layout.labels is None else np.array(layout.labels, np.int64),
            files=[ImageFile("/".join(parts), readers[parts]) for parts in layout.paths],
            sealed=not path.is_dir(),
            doubts=doubts(others, lost, list(map("/".join, layout.stray))),
        )


def _is_wanted(parts: Parts, split: str | None) -> bool:
    return is_image(parts[-1]) and split in (None, *parts[:2])


class _Walk:
    """List the files of a folder, and count the links to nothing, pipes and devices.

    Links are followed, because they are the user's own; pipes and devices are not.
    """

    def __init__(self) -> None:
        self.lost = 0

    def files(self, folder: str, above: Parts) -> Iterator[tuple[Parts, Reader]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                here = (*above, entry.name)
                if is_hidden((entry.name,)):
                    continue
                if entry.is_dir():
                    yield from self.files(entry.path, here) if len(here) <= DEEPEST else ()
                elif entry.is_file():
                    yield here, functools.partial(read_file, entry.path)
                else:
                    self.lost += 1
