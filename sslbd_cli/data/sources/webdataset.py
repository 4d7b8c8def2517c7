"""WebDataset shards: tar files in which the files of a sample share the name up to the first dot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from sslbd_cli.artefacts.captions import fault
from sslbd_cli.artefacts.files import read_text
from sslbd_cli.data.archives import Reader, list_files
from sslbd_cli.data.decode import ImageFile, foreign
from sslbd_cli.data.leftovers import is_image
from sslbd_cli.data.shards import Shard, find_shards
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish, named
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

NAMES = "classnames.txt"
NAMES_LIMIT = 16 << 20  # bytes of the file of class names
TEXT_LIMIT = 1 << 16  # bytes of a label or a caption


@dataclass
class Sample:
    """Hold the files of one sample: extension (lower case, without the first dot) -> reader."""

    name: str
    parts: dict[str, Reader] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Webdataset(Source):
    """Read WebDataset shards: one tar, a folder of tars, a pattern such as train-{000..012}.tar, a .txt list, or hf://.

    hf://datasets/OWNER/NAME[@REVISION]/PATTERN downloads the shards from the Hugging Face hub. A sample is KEY.jpg (or
    another suffix of images) with KEY.cls, a class number or a name, and KEY.txt, a caption. If a folder holds
    classnames.txt beside the shards, its lines name the numbers. Samples keep their order.
    """

    takes: ClassVar[tuple[str, ...]] = ("SOURCE", *FILE_OPTIONS, "--captions")
    needs: ClassVar[tuple[str, ...]] = ("SOURCE",)

    image: str = key("", "extension of the image; empty: the only one of an image")
    label: str = key("cls", "extension of the label")
    caption: str = key("txt", "extension of the caption")

    def catalogue(self, wish: SourceWish) -> Catalogue:
        with foreign("WebDataset shards"):
            shards = find_shards(wish.source, (".tar", ".tar.gz", ".tgz"), wish.say)
            samples = [sample for shard in shards for sample in _samples(shard, wish)]
        if not samples:
            raise InputError("no samples here")
        files = [ImageFile(sample.name, self._image(sample)) for sample in samples]
        labels = [_text(sample, self.label) for sample in samples]
        classes, numbers = _classes(labels, samples, shards[0].path.parent / NAMES)
        texts = [self._caption(sample) for sample in samples] if wish.captions else None
        return Catalogue(classes=classes, labels=numbers, files=files, captions=texts)

    def _image(self, sample: Sample) -> Reader:
        names = [self.image] if self.image else [name for name in sample.parts if is_image(f".{name}")]
        if len(names) != 1 or names[0] not in sample.parts:
            there = ", ".join(sample.parts) or "nothing"
            raise InputError(f"{sample.name}: expected one image, got {there}; {self.name}:image=EXTENSION chooses")
        return sample.parts[names[0]]

    def _caption(self, sample: Sample) -> str:
        text = _text(sample, self.caption)
        problem = "is missing" if text is None else fault(text)
        if problem:
            raise InputError(f"{sample.name}: the caption ({self.caption}) {problem}")
        return str(text)


def _samples(shard: Shard, wish: SourceWish) -> Iterator[Sample]:
    """Group the files of a shard, in the order of their first ones."""
    samples: dict[str, Sample] = {}
    for parts, reader in list_files(shard.path, lambda _: True, wish.watch)[0].items():
        stem, _, extension = parts[-1].partition(".")
        name = "/".join((*parts[:-1], stem))
        sample = samples.setdefault(name, Sample(f"{shard.name}: {name}"))
        sample.parts[extension.lower()] = reader
    yield from samples.values()


def _text(sample: Sample, extension: str) -> str | None:
    """Return the text of a sample's part, None if it has none."""
    if extension not in sample.parts:
        return None
    data = sample.parts[extension]()
    if len(data) > TEXT_LIMIT:
        raise InputError(f"{sample.name}: its {extension} has {len(data)} bytes, more than {TEXT_LIMIT}")
    return data.decode("utf-8", "surrogateescape").strip()


def _classes(labels: list[str | None], samples: list[Sample], names: Path) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the classes and the labels, int64 N; none if no sample has one. Raises InputError if only some have."""
    if not any(label is not None for label in labels):
        return (), None
    if None in labels:
        raise InputError(f"{samples[labels.index(None)].name}: has no label, unlike others")
    classes, numbers = named([str(label) for label in labels])
    if not names.is_file() or classes != tuple(map(str, range(len(classes)))):
        return classes, numbers
    lines = read_text(names, NAMES_LIMIT).splitlines()
    if len(lines) < len(classes):
        raise InputError(f"{NAMES} has {len(lines)} names, and a label is {len(classes) - 1}")
    return tuple(lines), numbers
