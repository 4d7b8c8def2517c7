"""SVHN: house numbers photographed from the street, cropped to digits of 32x32 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslbd_cli.data.source import Catalogue, Source, SourceWish, open_torchvision, pick_split


@dataclass(frozen=True, kw_only=True)
class Svhn(Source):
    """Read the cropped digits of SVHN in torchvision's layout from --root (splits train, test, extra)."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split")
    needs: ClassVar[tuple[str, ...]] = ("--root",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, ("train", "test", "extra"))
        from torchvision.datasets import SVHN

        found = open_torchvision(SVHN, wish, split=split)
        return Catalogue(classes=tuple("0123456789"), labels=found.labels.astype(np.int64), images=found.data)
