"""STL-10: photographs of 96x96 pixels, few with labels and many without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.data.source import Catalogue, Source, SourceWish, open_torchvision, pick_split

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Stl10(Source):
    """Read STL-10 in torchvision's layout from --root (splits train, test, unlabeled)."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split")
    needs: ClassVar[tuple[str, ...]] = ("--root",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, ("train", "test", "unlabeled"))
        from torchvision.datasets import STL10

        found = open_torchvision(STL10, wish, split=split)
        labels = None if split == "unlabeled" else found.labels.astype(np.int64)
        return Catalogue(classes=CLASSES, labels=labels, images=found.data)
