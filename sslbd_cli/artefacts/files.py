"""Read files that others have made: regular files of bounded size only, because a pipe or a device may never end."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

FILE_LIMIT = 256 << 20  # bytes of one picture or another small file


def read_file(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read a regular file, or `size` bytes of it.

    Raises OSError if there is no such file, if it is no regular one, or if it cannot be read; ValueError if it is
    larger than FILE_LIMIT, and EOFError if it ends too early.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError("not a regular file" if path.exists() else "no such file")
    size = path.stat().st_size - offset if size is None else size
    refuse_large(size)
    with open_regular(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise EOFError("truncated")
    return data


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file of any size. Raises OSError for anything else; it never waits for a pipe's other end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(number, "rb")


def refuse_large(size: int) -> bytes:
    """Raise ValueError if a file claims more than FILE_LIMIT bytes."""
    if size > FILE_LIMIT:
        raise ValueError(f"claims {size} bytes, more than the {FILE_LIMIT} a picture may have")
    return b""


def read_text(path: str | Path, most: int) -> str:
    """Read a text file or a pipe of at most `most` bytes, UTF-8 with or without a byte order mark.

    Bytes that are not UTF-8 become lone surrogates. Raises OSError if it cannot be read or is larger.
    """
    kind = Path(path).stat().st_mode
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
        raise OSError("neither a regular file nor a pipe")
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"has more than {most >> 20} MiB")
    return without_mark(data).decode("utf-8", "surrogateescape")


def without_mark(data: bytes) -> bytes:
    """Return text in UTF-8 without the byte order mark that some editors put before it."""
    return data.removeprefix(codecs.BOM_UTF8)
