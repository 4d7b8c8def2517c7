"""Images listed in a text file, as released poisoned training sets do."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sslbd_cli.artefacts.captions import fault
from sslbd_cli.artefacts.files import read_file, read_text
from sslbd_cli.artefacts.pictures import SUFFIXES
from sslbd_cli.data.decode import ImageFile, foreign
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish, named
from sslbd_cli.errors import InputError

LARGEST = 1 << 30  # bytes of a list


@dataclass(frozen=True, kw_only=True)
class Filelist(Source):
    """Read images listed in a text file, one PATH LABEL or PATH per line (with --captions: then a tab and a CAPTION).

    The label is the last word, so paths may hold spaces; a last word that ends like an image, such as .png, is no
    label. A list of paths alone makes a dataset without labels. Paths start at --root, or at the list's own folder. If
    all labels are whole numbers, they are the class numbers; otherwise the sorted names are the classes. Images keep
    the list's order. The caption follows the line's last tab.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--root", *FILE_OPTIONS, "--captions")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        assert wish.path is not None
        with foreign("a text file"):
            text = read_text(wish.path, LARGEST)
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        texts = None
        if wish.captions:
            cut = [_cut(number, line) for number, line in lines]
            lines, texts = [(number, head) for number, head, _ in cut], [caption for _, _, caption in cut]
        rows = [_row(number, line) for number, line in lines]
        if not rows:
            raise InputError("no images here")
        has_labels = _has_labels(lines, rows)
        folder = wish.root or wish.path.parent
        files = [ImageFile(path, functools.partial(read_file, Path(folder, path))) for path, _ in rows]
        classes, labels = named([label for _, label in rows]) if has_labels else ((), None)
        return Catalogue(classes=classes, labels=labels, files=files, captions=texts)


def _cut(number: int, line: str) -> tuple[int, str, str]:
    """Split a line into its head and its caption."""
    head, tab, caption = line.rpartition("\t")
    problem = fault(caption.strip()) if tab else "is missing"
    if problem:
        raise InputError(f"line {number}: the caption {problem}; expected PATH LABEL or PATH, a tab and the caption")
    return number, head, caption.strip()


def _row(number: int, line: str) -> tuple[str, str]:
    """Split a line's head into path and label; the label is empty for a path alone."""
    if "\0" in line or not line.strip():
        raise InputError(f"line {number}: expected PATH LABEL or PATH, got '{line.strip()[:80]}'")
    words = line.strip().rsplit(maxsplit=1)
    if len(words) == 1 or words[1].lower().endswith(SUFFIXES):
        return line.strip(), ""
    return words[0], words[1]


def _has_labels(lines: list[tuple[int, str]], rows: list[tuple[str, str]]) -> bool:
    """Return whether the lines have labels. Raises InputError if some have and some have not."""
    with_label = [bool(label) for _, label in rows]
    if len(set(with_label)) > 1:
        number, line = lines[with_label.index(not with_label[0])]
        rule = "PATH LABEL" if with_label[0] else "PATH"
        raise InputError(f"line {number}: expected {rule} as in the lines before, got '{line.strip()[:80]}'")
    return with_label[0]
