"""torchvision's ResNets with the stems and widths of self-supervised encoders."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sslbd_cli.errors import InputError


class AnyWidth(torchvision.models.ResNet):  # type: ignore[misc]
    """torchvision's ResNet with all channels times `width`/64. (Its own width_per_group widens only block middles.)"""

    def __init__(self, bottleneck: bool, blocks: str, width: int) -> None:
        self.width = width
        super().__init__(Bottleneck if bottleneck else BasicBlock, list(four(blocks)))

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:  # the first of the four layers, just after the stem
            self.inplanes = self.width
            self.conv1 = nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.width)
        layer: nn.Sequential = super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)
        return layer


def stemmed(model: nn.Module, stem: str, size: int) -> nn.Module:
    """Give a torchvision ResNet the requested stem (auto: by image size) and remove its classifier."""
    if stem in ("cifar", "solo") or (stem == "auto" and size <= 64):
        # BadEncoder's and lightly's CIFAR stem keeps 32x32 maps; solo-learn's (no-label backdoors) makes them 34x34
        width = int(model.conv1.out_channels)  # type: ignore[union-attr,arg-type]
        model.conv1 = nn.Conv2d(3, width, 3, 1, 2 if stem == "solo" else 1, bias=False)
        model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return model


def four(text: str) -> tuple[int, ...]:
    """Parse the blocks of four layers. Raises InputError for other texts."""
    parts = text.split("-")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 4 and int(part) for part in parts):
        raise InputError(f"blocks={text}: expected four whole numbers joined by dashes, such as 3-4-6-3")
    return tuple(map(int, parts))
