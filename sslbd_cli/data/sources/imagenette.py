"""Imagenette: ten easy classes of ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sslbd_cli.data.source import Catalogue, Source, SourceWish, open_torchvision, pick_split, torchvision_files
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Imagenette(Source):
    """Read Imagenette in torchvision's layout from --root (splits train, val); needs --size. Classes: WordNet ids."""

    takes: ClassVar[tuple[str, ...]] = ("--root", "--download", "--split", "--skip-corrupt")
    needs: ClassVar[tuple[str, ...]] = ("--root",)

    variant: str = key("full", "published archive, by its shorter side", choices=("full", "320px", "160px"))

    def catalogue(self, wish: SourceWish) -> Catalogue:
        split = pick_split(wish.split, ("train", "val"))
        from torchvision.datasets import Imagenette as Found

        found = open_torchvision(Found, wish, split=split, size=self.variant)
        assert wish.root is not None
        files, labels = torchvision_files(found._samples, wish.root)  # the only listing that decodes nothing
        return Catalogue(classes=tuple(found.wnids), labels=labels, files=files)
