"""GTSRB: German traffic signs in 43 classes, in many sizes."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.data.torchvision_sets import TorchvisionFiles


@dataclass(frozen=True, kw_only=True)
class Gtsrb(TorchvisionFiles):
    """Read GTSRB in torchvision's layout from --root (splits train, test); needs --size."""

    dataset = "GTSRB"
    splits = ("train", "test")
    class_names = tuple(f"{number:05d}" for number in range(43))  # the names of the training set's folders
