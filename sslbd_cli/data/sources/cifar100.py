"""CIFAR-100: 60,000 photographs of 32x32 pixels in a hundred classes."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.data.torchvision_sets import CifarArrays


@dataclass(frozen=True, kw_only=True)
class Cifar100(CifarArrays):
    """Read CIFAR-100 in torchvision's layout from --root (splits train, test)."""

    dataset = "CIFAR100"
