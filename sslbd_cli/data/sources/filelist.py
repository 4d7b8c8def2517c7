"""Images listed in a text file, as released poisoned training sets do."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sslbd_cli.artefacts.captions import fault
from sslbd_cli.data.decode import ImageFile, foreign, read_file
from sslbd_cli.data.source import Catalogue, Source, SourceWish, numbered
from sslbd_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Filelist(Source):
    """Read images listed in a text file, one PATH LABEL per line (with --captions: PATH LABEL<tab>CAPTION).

    The label is the last word, so paths may hold spaces. Paths start at --root, or at the list's own folder. If all
    labels are whole numbers, they are the class numbers; otherwise the sorted names are the classes. Images keep the
    list's order. The caption follows the line's last tab. For images without classes, write any one label.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--root", "--skip-corrupt", "--captions")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        assert wish.path is not None
        with foreign("a text file"):
            text = wish.path.read_bytes().decode("utf-8", "surrogateescape")
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        texts = None
        if wish.captions:
            cut = [_cut(number, line) for number, line in lines]
            lines, texts = [(number, head) for number, head, _ in cut], [caption for _, _, caption in cut]
        rows = [_row(number, line) for number, line in lines]
        folder = wish.root or wish.path.parent
        files = [ImageFile(path, functools.partial(read_file, Path(folder, path))) for path, _ in rows]
        classes, labels = _classes([label for _, label in rows])
        return Catalogue(classes=classes, labels=labels, files=files, captions=texts)


def _cut(number: int, line: str) -> tuple[int, str, str]:
    """Split a line into its head and its caption."""
    head, tab, caption = line.rpartition("\t")
    problem = fault(caption.strip()) if tab else "is missing"
    if problem:
        raise InputError(f"line {number}: the caption {problem}; expected PATH LABEL, a tab and the caption")
    return number, head, caption.strip()


def _row(number: int, line: str) -> tuple[str, str]:
    words = line.strip().rsplit(maxsplit=1)
    if len(words) != 2 or "\0" in line:
        raise InputError(f"line {number}: expected PATH LABEL, got '{line.strip()[:80]}'")
    return words[0], words[1]


def _classes(labels: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return class names and labels int64 N. Raises InputError for a number that cannot be a class."""
    if all(label.isascii() and label.removeprefix("-").isdigit() and len(label) < 18 for label in labels):
        numbers = np.array([int(label) for label in labels], np.int64)
        return numbered(numbers), numbers
    names = tuple(sorted(set(labels)))
    index = {name: number for number, name in enumerate(names)}
    return names, np.array([index[label] for label in labels], np.int64)
