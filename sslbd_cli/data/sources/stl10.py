"""STL-10: photographs of 96x96 pixels, few with labels and many without."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.data.torchvision_sets import TorchvisionArrays


@dataclass(frozen=True, kw_only=True)
class Stl10(TorchvisionArrays):
    """Read STL-10 in torchvision's layout from --root (splits train, test, unlabeled)."""

    dataset = "STL10"
    splits = ("train", "test", "unlabeled")
    class_names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    unlabeled = "unlabeled"
