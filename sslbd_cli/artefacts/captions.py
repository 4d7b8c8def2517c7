"""Captions as arrays: rows of UTF-8 bytes padded with zeros. This module does not need torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from sslbd_cli.artefacts import container
from sslbd_cli.artefacts.files import without_mark
from sslbd_cli.errors import InputError

LONGEST = 1024  # bytes of one caption
LARGEST = 256 << 20  # bytes of a text file


def fault(text: str) -> str:
    """Return why a text cannot be a caption, or "" if it can."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "holds a zero byte"
    return f"has {size} bytes, more than {LONGEST}" if size > LONGEST else ""


def encode(texts: Sequence[str]) -> np.ndarray:
    """Encode texts as uint8 N,L, where L is the longest one in bytes. Raises InputError if one cannot be a caption."""
    for number, text in enumerate(texts, 1):
        if problem := fault(text):
            raise InputError(f"caption {number} {problem}")
    rows = [text.encode() for text in texts]
    width = max(map(len, rows), default=0)
    joined = b"".join(row.ljust(width, b"\0") for row in rows)
    captions: np.ndarray = np.frombuffer(joined, np.uint8).reshape(len(rows), width).copy()
    return captions


def decode(captions: np.ndarray) -> list[str]:
    """Return the texts of captions uint8 N,L."""
    return [row.tobytes().rstrip(b"\0").decode() for row in captions]


def read_lines(path: str) -> tuple[np.ndarray, str] | None:
    """Read a text file (`-` is standard input), one caption per line: uint8 N,L and the SHA-256 of the file.

    Returns None for an HDF5 file. Raises InputError, which names the line, if a line cannot be a caption.
    """
    label = "standard input" if path == "-" else path
    with container.seekable(path, most=LARGEST) as file:
        data = file.read(LARGEST)
    if data.startswith(container.HDF5_MAGIC) and path != "-":
        return None
    if len(data) == LARGEST:
        raise InputError(f"{label}: a text file of {LARGEST >> 20} MiB or more; split it")
    lines = without_mark(data).decode("utf-8", "surrogateescape").splitlines()
    for number, line in enumerate(lines, 1):
        if problem := fault(line):
            raise InputError(f"{label}: line {number} {problem}; expected UTF-8 text, one to embed per line")
    if not lines:
        raise InputError(f"{label}: is empty")
    return encode(lines), hashlib.sha256(data).hexdigest()


def split_classes(lines: np.ndarray, path: str) -> tuple[np.ndarray, tuple[list[int], tuple[str, ...]] | None]:
    """Split lines CLASS<tab>TEXT, uint8 N,L, into the texts, their class numbers and the class names in file order.

    If no line has a tab, all lines are texts and the classes are None. Raises InputError, which names the line, if only
    some lines have a tab, or if a part is empty.
    """
    rows = [text.partition("\t") for text in decode(lines)]
    if not any(tab for _, tab, _ in rows):
        return lines, None
    for number, (name, tab, text) in enumerate(rows, 1):
        if not (tab and name.strip() and text.strip()):
            raise InputError(f"{path}: line {number} is not CLASS<tab>TEXT like other lines; complete it")
    classes = tuple(dict.fromkeys(name for name, _, _ in rows))
    return encode([text for _, _, text in rows]), ([classes.index(name) for name, _, _ in rows], classes)
