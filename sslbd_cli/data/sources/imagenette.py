"""Imagenette: ten easy classes of ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sslbd_cli.data.torchvision_sets import TorchvisionFiles
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Imagenette(TorchvisionFiles):
    """Read Imagenette in torchvision's layout from --root (splits train, val); needs --size. Classes: WordNet ids."""

    dataset = "Imagenette"
    splits = ("train", "val")

    variant: str = key("full", "published archive, by its shorter side", choices=("full", "320px", "160px"))

    def options(self, split: str) -> dict[str, Any]:
        return {"split": split, "size": self.variant}
