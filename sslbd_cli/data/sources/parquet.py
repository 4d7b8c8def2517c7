"""Parquet files with a column of encoded images, as the Hugging Face hub keeps datasets of images."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sslbd_cli.artefacts.captions import fault
from sslbd_cli.data.decode import ImageFile, foreign, unpacking_limit
from sslbd_cli.data.shards import Shard, find_shards
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish, named, numbered
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.words import first_names

IMAGES, CAPTIONS = ("image", "img", "images", "jpg", "png"), ("caption", "text", "captions")  # usual columns
LABELS = ("label", "labels", "fine_label", "class", "cls")
KEPT_GROUPS = 2  # row groups whose images stay in memory


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Read Parquet files with encoded images: one file, a folder, a pattern such as train-*.parquet, a list, or hf://.

    hf://datasets/OWNER/NAME[@REVISION]/PATTERN downloads them from the Hugging Face hub. The columns are found by the
    hub's own types (Image, ClassLabel) or by their usual names; `image`, `label` and `caption` choose others. Files
    without labels, or `label=none`, make a dataset without labels. Needs pyarrow: pip install 'sslbd[parquet]'.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", *FILE_OPTIONS, "--captions")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    image: str = key("", "column of the images; empty: the only one, or a usual name")
    label: str = key("", "column of the labels; empty: the only one, or a usual name; none: no labels")
    caption: str = key("", "column of the captions; empty: a usual name")

    def catalogue(self, wish: SourceWish) -> Catalogue:
        with foreign("Parquet files"):
            tables = [_Table(shard) for shard in find_shards(wish.source, (".parquet",), wish.say)]
        first = tables[0]
        image = self.image or first.column("image", first.of_type("Image") or first.with_bytes(), IMAGES, needed=True)
        label = self.label or first.column("label", first.of_type("ClassLabel"), LABELS)
        caption = self.caption or (first.column("caption", [], CAPTIONS, needed=True) if wish.captions else "")
        for name in (image, caption, "" if label == "none" else label):
            for table in tables:
                table.need(name)
        files = [file for table in tables for file in table.images(image)]
        if not files:
            raise InputError("no images here")
        classes: tuple[str, ...] = ()
        labels = None
        if label not in ("", "none"):
            classes, labels = _classes([value for table in tables for value in table.values(label)], first.names(label))
        texts = None
        if wish.captions:
            texts = [_checked(text, row) for row, text in enumerate(v for t in tables for v in t.values(caption))]
        return Catalogue(classes=classes, labels=labels, files=files, captions=texts)


class _Table:
    """One Parquet file: its columns, and the images of a few row groups at a time."""

    def __init__(self, shard: Shard) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise InputError("the source parquet needs pyarrow; pip install 'sslbd[parquet]'") from None
        self.name = shard.name
        _check_size(shard.path)
        self.file = parquet.ParquetFile(shard.path)
        size, claimed = shard.path.stat().st_size, sum(self._group(at).total_byte_size for at in range(self._groups))
        if claimed > unpacking_limit(size):
            raise InputError(f"{self.name}: claims to unpack {size} bytes to {claimed}: taken for a decompression bomb")
        self.schema = self.file.schema_arrow
        self.lock = threading.Lock()
        self._kept: dict[int, list[bytes]] = {}

    @property
    def _groups(self) -> int:
        return int(self.file.metadata.num_row_groups)

    def _group(self, at: int) -> Any:
        return self.file.metadata.row_group(at)

    @functools.cached_property
    def features(self) -> dict[str, Any]:
        """What the hub's library has noted on the columns: name -> type."""
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return features if isinstance(features, dict) else {}
        except (KeyError, ValueError, TypeError, RecursionError):
            return {}

    def of_type(self, kind: str) -> list[str]:
        return [name for name, what in self.features.items() if isinstance(what, dict) and what.get("_type") == kind]

    def with_bytes(self) -> list[str]:
        """Return the columns of structures that hold encoded files."""
        kinds = {field.name: str(field.type) for field in self.schema}
        return [name for name, kind in kinds.items() if kind.startswith("struct<") and "bytes: " in kind]

    def column(self, what: str, typed: Sequence[str], usual: Sequence[str], needed: bool = False) -> str:
        """Return the column of images, labels or captions: the only one of its type, or one of a usual name.

        Raises InputError if there are several, or if it is needed and there is none.
        """
        candidates = (
            list(typed) if len(typed) == 1 else [name for name in usual if name in (typed or self.schema.names)]
        )
        if not candidates and (typed or needed):
            there = first_names(list(typed) or self.schema.names, 10)
            raise InputError(
                f"{self.name}: which column holds the {what}? parquet:{what}=COLUMN chooses; there are {there}"
            )
        return candidates[0] if candidates else ""

    def need(self, name: str) -> None:
        """Raise InputError if there is no such column."""
        if name and name not in self.schema.names:
            raise InputError(f"{self.name}: no column '{name}'; there are {first_names(self.schema.names, 10)}")

    def names(self, label: str) -> tuple[str, ...]:
        """Return the class names that the hub's library has noted."""
        names = self.features.get(label, {}).get("names") if isinstance(self.features.get(label), dict) else None
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()

    def values(self, name: str) -> list[Any]:
        with foreign("a Parquet file"):
            values: list[Any] = self.file.read(columns=[name]).column(name).to_pylist()
        return values

    def images(self, name: str) -> list[ImageFile]:
        rows = [(group, row) for group in range(self._groups) for row in range(self._group(group).num_rows)]
        return [ImageFile(f"{self.name}: row {at}", functools.partial(self._image, name, *place))
                for at, place in enumerate(rows)]  # fmt: skip

    def _image(self, name: str, group: int, row: int) -> bytes:
        with self.lock:
            if group not in self._kept:
                while len(self._kept) >= KEPT_GROUPS:
                    del self._kept[next(iter(self._kept))]
                column = self.file.read_row_group(group, columns=[name]).column(name)
                self._kept[group] = [_content(value) for value in column.to_pylist()]
            return self._kept[group][row]


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise InputError("not a regular file")


def _content(value: Any) -> bytes:
    """Return the bytes of an image: the value itself, or the `bytes` of a structure; nothing if there are none."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else b""


def _classes(labels: list[Any], names: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return class names and labels int64 N. Raises InputError if a label is missing or outside the names."""
    if None in labels:
        raise InputError(f"row {labels.index(None)} has no label; parquet:label=none leaves labels out")
    if not all(isinstance(label, int) for label in labels):
        return named([str(label) for label in labels])
    numbers = np.array(labels, np.int64)
    classes = numbered(numbers)
    if names and len(names) < len(classes):
        raise InputError(
            f"{len(names)} class names, and a label is {len(classes) - 1}; choose another column of labels"
        )
    return names or classes, numbers


def _checked(text: Any, row: int) -> str:
    problem = "is missing" if not isinstance(text, str) else fault(text)
    if problem:
        raise InputError(f"row {row}: the caption {problem}")
    return str(text)
