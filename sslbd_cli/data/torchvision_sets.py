"""Base classes of the datasets that torchvision reads. Each dataset is one small file on the shelf."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sslbd_cli.artefacts.files import read_file
from sslbd_cli.data.decode import ImageFile
from sslbd_cli.data.source import FILE_OPTIONS, Catalogue, Source, SourceWish, pick_split
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason


@dataclass(frozen=True, kw_only=True)
class TorchvisionArrays(Source):
    """Base of datasets that torchvision stores as one array of images N,3,H,W.

    dataset: its class in torchvision; splits: their names; class_names: needed if torchvision does not name the
    classes; unlabeled: the split without labels.
    """

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split")
    needs: ClassVar[tuple[str, ...]] = ("--root",)
    dataset: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    class_names: ClassVar[tuple[str, ...]] = ()
    unlabeled: ClassVar[str] = ""

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, self.splits)
        from torchvision import datasets

        opened = open_torchvision(getattr(datasets, self.dataset), wish, **self.options(split))
        return self.unpacked(opened, split, wish.root or Path())

    def options(self, split: str) -> dict[str, Any]:
        """Return torchvision's arguments that open a split."""
        return {"split": split}

    def unpacked(self, opened: Any, split: str, root: Path) -> Catalogue:
        """List the images of torchvision's object."""
        labels = None if split == self.unlabeled else opened.labels.astype(np.int64)
        return Catalogue(classes=self.class_names, labels=labels, images=opened.data)


@dataclass(frozen=True, kw_only=True)
class CifarArrays(TorchvisionArrays):
    """Base of the two CIFAR datasets, which torchvision stores as one array of images N,H,W,3."""

    splits = ("train", "test")

    def options(self, split: str) -> dict[str, Any]:
        return {"train": split == "train"}

    def unpacked(self, opened: Any, split: str, root: Path) -> Catalogue:
        labels = np.array(opened.targets, np.int64)
        return Catalogue(classes=tuple(opened.classes), labels=labels, images=opened.data.transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class TorchvisionFiles(TorchvisionArrays):
    """Base of datasets that torchvision stores as image files of many sizes."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split", *FILE_OPTIONS)

    def unpacked(self, opened: Any, split: str, root: Path) -> Catalogue:
        files, labels = torchvision_files(opened._samples, root)  # the only listing that decodes nothing
        return Catalogue(classes=self.class_names or tuple(opened.wnids), labels=labels, files=files)


def open_torchvision(maker: Callable[..., Any], wish: SourceWish, **options: Any) -> Any:
    """Open a torchvision dataset in --root. torchvision checks the MD5 sums of its files before it loads them.

    Raises InputError if the dataset is missing, is damaged or cannot be downloaded.
    """
    title = maker.__name__
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output carries only the artefact
            return maker(str(wish.root), download=wish.download, **options)
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        if wish.download:
            raise InputError(f"{title} could not be downloaded: {reason(error)}") from None
        hint = "give the --root that holds it, or --download if there is a network"
        raise InputError(f"no complete {title} in this folder ({reason(error).split('. ')[0]}); {hint}") from None


def torchvision_files(samples: Sequence[tuple[str, int]], root: Path) -> tuple[list[ImageFile], np.ndarray]:
    """Turn torchvision's (path, label) pairs into files, named relative to root and sorted, and labels int64 N."""
    rows = sorted((Path(path).relative_to(root).as_posix(), path, label) for path, label in samples)
    files = [ImageFile(name, lambda path=path: read_file(path)) for name, path, _ in rows]  # type: ignore[misc]
    return files, np.array([label for _, _, label in rows], np.int64)
