"""Arrays in a NumPy archive, a common format of classification datasets."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sslbd_cli.artefacts.files import open_regular
from sslbd_cli.data.decode import foreign, unpacking_limit
from sslbd_cli.data.source import Catalogue, Source, SourceWish, numbered
from sslbd_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Npz(Source):
    """Read a .npz file: x uint8 N,H,W,3 or N,3,H,W; y whole numbers N or N,1; optional classes (names) and captions.

    A file with x alone (or with captions) makes a dataset without labels. Pickled objects are never loaded. Of an
    export of sslbd convert, the truth is not read.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", "--captions")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        assert wish.path is not None
        arrays = _load(str(wish.path))
        images = _images(arrays["x"])
        texts = _captions(arrays, len(images)) if wish.captions else None
        if "y" not in arrays:
            return Catalogue(classes=(), labels=None, images=images, captions=texts, sealed=True)
        labels = _labels(arrays["y"])
        if len(images) != len(labels):
            raise InputError(f"x holds {len(images)} images, y {len(labels)} labels; give one label per image")
        classes = numbered(labels)
        if "classes" in arrays:
            classes = _names(arrays["classes"], len(classes))
        return Catalogue(classes=classes, labels=labels, images=images, captions=texts, sealed=True)


def _load(path: str) -> dict[str, np.ndarray]:
    """Read the arrays x, y, classes and captions."""
    with foreign("an .npz file"), open_regular(path) as file:
        arrays: Any = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise InputError("a single array, not an .npz file; save it with numpy.savez(FILE, x=..., y=...)")
        absent = [name for name in ("x", "y") if name not in arrays.files]
        others = [name for name in arrays.files if name not in ("x", "captions") and not name.startswith("truth_")]
        if "x" in absent or (absent and others):
            names = ", ".join(arrays.files[:10]) or "none"
            raise InputError(f"no array '{absent[0]}' among {names}; expected x and y, or x alone for no labels")
        claimed, packed = sum(member.file_size for member in zipfile.ZipFile(file).infolist()), file.seek(0, 2)
        if claimed > unpacking_limit(packed):
            raise InputError(f"claims to unpack {packed} bytes to {claimed}: taken for a decompression bomb")
        return {name: arrays[name] for name in ("x", "y", "classes", "captions") if name in arrays.files}


def _images(x: np.ndarray) -> np.ndarray:
    """Return x as uint8 N,3,H,W. Raises InputError for any other type or layout."""
    places = [axis for axis in (1, 3) if x.ndim == 4 and x.shape[axis] == 3]
    if x.dtype != np.uint8 or len(places) != 1:
        raise InputError(f"x is {x.dtype} {x.shape}, expected uint8 (N, H, W, 3) or (N, 3, H, W)")
    return np.moveaxis(x, places[0], 1)


def _labels(y: np.ndarray) -> np.ndarray:
    """Return y as int64 N. Raises InputError for any other type or layout."""
    if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise InputError(f"y is {y.dtype} {y.shape}, expected whole numbers (N,) or (N, 1)")
    return y.reshape(-1).astype(np.int64)


def _captions(arrays: dict[str, np.ndarray], count: int) -> list[str]:
    """Return the captions. Raises InputError if there are none, or not one text for each image."""
    if "captions" not in arrays:
        raise InputError("no array 'captions'; leave --captions out")
    texts = arrays["captions"]
    if texts.dtype.kind != "U" or texts.shape != (count,):
        raise InputError(f"captions is {texts.dtype} {texts.shape}, expected {count} texts")
    return [str(text) for text in texts]


def _names(classes: np.ndarray, used: int) -> tuple[str, ...]:
    if classes.dtype.kind != "U" or classes.ndim != 1 or len(classes) < used:
        raise InputError(f"classes is {classes.dtype} {classes.shape}, expected at least {used} names (text)")
    return tuple(map(str, classes))
