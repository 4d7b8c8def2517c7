"""Validate the content of an artefact. Each function raises InputError for invalid content."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sslbd_cli.artefacts.captions import LONGEST
from sslbd_cli.errors import InputError

ROWS = 1 << 16  # captions to check at once


def array(arrays: dict[str, np.ndarray], name: str, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return the array `name` of this type and shape. None in the shape means any length."""
    need(name in arrays, f"'{name}' is missing")
    data = arrays[name]
    fits = data.ndim == len(shape) and all(s is None or s == a for s, a in zip(shape, data.shape, strict=True))
    need(
        fits and data.dtype == dtype,
        f"'{name}' is {data.dtype} {data.shape}, expected {np.dtype(dtype)} {shape}",
    )
    return data


def class_names(meta: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names of a header."""
    classes = meta.get("classes", [])
    need(isinstance(classes, list) and all(isinstance(c, str) for c in classes), "classes are not a list of names")
    twice = next((name for name, count in Counter(classes).items() if count > 1), None)
    need(twice is None, f"two classes have the name '{twice}'; rename one")
    return tuple(classes)


def label_array(arrays: dict[str, np.ndarray], count: int, classes: int) -> np.ndarray | None:
    """Return the labels, int64 N in [0, classes), or None if there are none."""
    if "labels" not in arrays:
        return None
    labels = array(arrays, "labels", np.int64, (count,))
    need(0 <= int(labels.min()) and int(labels.max()) < classes, "a label lies outside its classes")
    return labels


def caption_array(arrays: dict[str, np.ndarray], count: int) -> np.ndarray | None:
    """Return the captions, uint8 N,L of UTF-8 bytes padded with zeros, or None if there are none."""
    if "captions" not in arrays:
        return None
    captions = array(arrays, "captions", np.uint8, (count, None))
    need(0 < captions.shape[1] <= LONGEST, f"captions have {captions.shape[1]} bytes, expected 1 to {LONGEST}")
    for start in range(0, count, ROWS):
        part = np.pad(captions[start : start + ROWS], ((0, 0), (0, 1)))  # no character continues in the next caption
        real = part != 0
        need(bool(real[:, 0].all()), f"the caption of image {start + int(np.argmin(real[:, 0]))} is empty")
        gaps = (real[:, 1:] & ~real[:, :-1]).any(1)
        need(not gaps.any(), f"the caption of image {start + int(np.argmax(gaps))} holds a zero byte")
        try:
            part.tobytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"the caption of image {start + error.start // part.shape[1]} is not UTF-8") from None
    return captions


def only_keys(entries: dict[str, Any], known: set[str]) -> None:
    """Refuse entries that the kind does not know."""
    unknown = sorted(set(entries) - known)
    need(not unknown, f"unknown entries {', '.join(unknown[:5])}")


def is_count(value: Any, most: int) -> bool:
    """Return whether a JSON value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def need(condition: bool, problem: str) -> None:
    """Raise InputError with the problem unless the condition holds."""
    if not condition:
        raise InputError(problem)
