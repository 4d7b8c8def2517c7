"""Large arrays that do not fill the memory: their pages belong to files, so the kernel can take them back.

Arrays of an artefact are mapped. Arrays that a command makes lie in an unlinked temporary file once they are large
(`TMPDIR` names its folder). This process also lets go of the pages that it has used, because they would count as its
own although the kernel keeps them in its cache of files.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

LARGE = 1 << 24  # bytes of an array above which it lies in a file
BLOCK = 1 << 24  # bytes that are copied at once
USED = 1 << 26  # bytes that are used before this process lets go of the pages of all its files

_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_used = 0


def mapped(file: BinaryIO, dtype: Any, shape: Sequence[int], offset: int = 0, *, writes: bool = False) -> np.ndarray:
    """Map a part of an open file as an array. Without `writes`, a change stays in this process and may be undone."""
    array = np.memmap(file, dtype=dtype, mode="r+" if writes else "c", offset=offset, shape=tuple(shape))
    _maps.add(array._mmap)  # type: ignore[attr-defined]
    return array


def empty(shape: Sequence[int], dtype: Any = np.uint8) -> np.ndarray:
    """Return a new array to be filled. A large one lies in a temporary file, if there is room for it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > LARGE and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # fails now and not in the middle of the work
            return mapped(file, dtype, shape, writes=True)
    return np.empty(tuple(shape), dtype)


def note_use(size: int) -> None:
    """Count bytes of large arrays that were read or written. Let go of their pages from time to time."""
    global _used
    _used += size
    if _used > USED and sys.platform == "linux":  # elsewhere the advice may lose what was written
        _used = 0
        for each in list(_maps):
            with contextlib.suppress(ValueError):  # it is closed
                each.madvise(mmap.MADV_DONTNEED)


def parts(array: np.ndarray) -> Iterable[slice]:
    """Cut the first axis into parts of about BLOCK bytes. Each part counts as used after its turn."""
    each = max(1, array[:1].nbytes)
    step = max(1, BLOCK // each)
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
        note_use(step * each)


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of the given rows, in this order."""
    result = empty((len(rows), *array.shape[1:]), array.dtype)
    for part in parts(result):
        result[part] = array[rows[part]]
    return result


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return a contiguous copy of arrays one after the other, along the first axis."""
    result = empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        for part in parts(array):
            result[start + part.start : start + part.stop] = array[part]
        start += len(array)
    return result
