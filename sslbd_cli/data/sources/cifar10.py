"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.data.source import Catalogue, Source, SourceWish, open_torchvision, pick_split


@dataclass(frozen=True, kw_only=True)
class Cifar10(Source):
    """Read CIFAR-10 in torchvision's layout from --root (splits train, test)."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split")
    needs: ClassVar[tuple[str, ...]] = ("--root",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, ("train", "test"))
        from torchvision.datasets import CIFAR10

        found = open_torchvision(CIFAR10, wish, train=split == "train")
        labels = np.array(found.targets, np.int64)
        return Catalogue(classes=tuple(found.classes), labels=labels, images=found.data.transpose(0, 3, 1, 2))
