"""GTSRB: German traffic signs in 43 classes, in many sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sslbd_cli.data.source import Catalogue, Source, SourceWish, open_torchvision, pick_split, torchvision_files

CLASSES = tuple(f"{number:05d}" for number in range(43))  # names of the training set's folders


@dataclass(frozen=True, kw_only=True)
class Gtsrb(Source):
    """Read GTSRB in torchvision's layout from --root (splits train, test); needs --size."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split", "--skip-corrupt")
    needs: ClassVar[tuple[str, ...]] = ("--root",)

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, ("train", "test"))
        from torchvision.datasets import GTSRB

        found = open_torchvision(GTSRB, wish, split=split)
        assert wish.root is not None
        files, labels = torchvision_files(found._samples, wish.root)  # the only listing that decodes nothing
        return Catalogue(classes=CLASSES, labels=labels, files=files)
