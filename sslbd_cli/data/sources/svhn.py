"""SVHN: house numbers photographed from the street, cropped to digits of 32x32 pixels."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.data.torchvision_sets import TorchvisionArrays


@dataclass(frozen=True, kw_only=True)
class Svhn(TorchvisionArrays):
    """Read the cropped digits of SVHN in torchvision's layout from --root (splits train, test, extra)."""

    dataset = "SVHN"
    splits = ("train", "test", "extra")
    class_names = tuple("0123456789")
