"""What patch triggers share: size, place and opacity of a square; and pictures that triggers read from files."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _boxes as geometry
from sslbd_cli.triggers._contract import Phase, Trigger


@dataclass(frozen=True, kw_only=True)
class Patched(Trigger):
    """Base of triggers that paste one square, the same in every image, at a fixed or a random place.

    A patch that its place has no room for is refused, never moved.

    The ranges of random places are SSL-Backdoor's: training patches lie in the central half of the image, where crops
    keep them; test patches almost anywhere.
    """

    size: float = key(0.2, "side: in pixels from 1 up, below 1 a share of the image's shorter side", low=0.001)
    where: str = key("br", "place of the patch", choices=("tl", "tr", "bl", "br", "center", "random"))
    margin: int = key(1, "pixels left free at the border (BadEncoder leaves one); of corners alone", low=0)
    opacity: float = key(1.0, "share of the patch in its pixels; 1 hides the image below", low=0.01, high=1)
    train_low: float = key(
        0.25, "random: patches of training images begin at this share of each side", low=0, high=1, expert=True
    )
    train_high: float = key(
        0.75,
        "random: they end by this share of each side, or begin at train_low if longer",
        low=0,
        high=1,
        expert=True,
    )
    test_low: float = key(
        0.1, "random: patches of test images begin at this share of each side", low=0, high=1, expert=True
    )
    test_high: float = key(
        0.9,
        "random: they end by this share of each side, or begin at test_low if longer",
        low=0,
        high=1,
        expert=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for phase in ("train", "test"):
            low, high = (getattr(self, f"{phase}_{end}") for end in ("low", "high"))
            if low > high:
                raise InputError(f"{self.name}: {phase}_low={low:g} is above {phase}_high={high:g}; swap them")

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        shape = height, width, geometry.side(self.size, height, width)
        if self.where == "random":
            ends = (self.train_low, self.train_high) if phase == "train" else (self.test_low, self.test_high)
            corners = geometry.wander(count, shape, *ends, gen)
        else:
            corners = geometry.fixed(shape, self.where, self.margin).repeat(count, 1)
        return torch.cat([corners, torch.full((count, 2), shape[2])], dim=1)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        return geometry.paste(x, self.pattern(int(boxes[0, 2])), boxes, self.opacity)

    @abstractmethod
    def pattern(self, pixels: int) -> Tensor:
        """Return the patch, float 3,pixels,pixels in [0,1]."""


def digest(trigger: str, file: str, expected: str) -> str:
    """Return the sha256 of a trigger's file.

    Raises InputError where the file cannot be read, or is not the one that was expected ("" expects any).
    """
    if not file:
        raise InputError(f"{trigger}: it has no file; give {trigger}:file=PATH")
    try:
        found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{trigger}: file={file}: {error.strerror}; give {trigger}:file=PATH") from None
    if expected not in ("", found):
        raise InputError(f"{trigger}: {file} is not the file it was: its digest differs from sha256={expected}")
    return found


def read_picture(trigger: str, file: str, height: int, width: int) -> Tensor:
    """Read a picture, resized to float 3,height,width in [0,1] by Pillow's bicubic filter, as the authors' code does.

    Raises InputError where the file is no picture.
    """
    try:
        with Picture.open(file) as picture:
            small = picture.convert("RGB").resize((width, height), Picture.Resampling.BICUBIC)
    except (OSError, ValueError, Picture.DecompressionBombError) as error:
        raise InputError(f"{trigger}: file={file}: not a readable picture: {error}") from None
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
