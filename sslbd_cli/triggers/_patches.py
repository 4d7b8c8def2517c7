"""What patch triggers share: size, place and opacity of a square; and how triggers read pictures from files."""

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
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class Patched(Trigger):
    """Base of triggers that paste the same square into every image, at a fixed or a random place.

    A patch that does not fit at its place is an error; it is never moved.

    The ranges of random places are SSL-Backdoor's. Training patches lie in the central half of the image, where random
    crops often keep them. Test patches lie almost anywhere.
    """

    size: float = key(0.2, "side: pixels if 1 or more, else a share of the image's shorter side", low=0.001)
    where: str = key("br", "place of the patch", choices=("tl", "tr", "bl", "br", "center", "random"))
    margin: int = key(1, "pixels between a corner patch and the border (BadEncoder: 1)", low=0)
    opacity: float = key(1.0, "opacity of the patch; 1 hides the image below it", low=0.01, high=1)
    train_low: float = key(0.25, "random place, training: the range starts at this share of each side",
                           low=0, high=1, expert=True)  # fmt: skip
    train_high: float = key(0.75, "random place, training: it ends here; a patch longer than the range begins at "
                                  "train_low", low=0, high=1, expert=True)  # fmt: skip
    test_low: float = key(0.1, "random place, test: the range starts at this share of each side",
                          low=0, high=1, expert=True)  # fmt: skip
    test_high: float = key(0.9, "random place, test: it ends here; a patch longer than the range begins at test_low",
                           low=0, high=1, expert=True)  # fmt: skip

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
        layer = resident(self._layer, int(boxes[0, 2]), like=x)
        return geometry.paste(x, layer, boxes, self.opacity)

    def _layer(self, pixels: int) -> Tensor:
        return self.pattern(pixels) * self.opacity

    @abstractmethod
    def pattern(self, pixels: int) -> Tensor:
        """Return the patch, float 3,pixels,pixels in [0,1]."""


def digest(trigger: str, file: str, expected: str) -> str:
    """Return the sha256 of a trigger's file.

    Raises InputError if the file cannot be read, or if its sha256 is not `expected` ("" accepts any file).
    """
    if not file:
        raise InputError(f"{trigger}: no file is given; give {trigger}:file=PATH")
    try:
        file_digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{trigger}: file={file}: {error.strerror}; give {trigger}:file=PATH") from None
    if expected not in ("", file_digest):
        raise InputError(f"{trigger}: {file} is not the file it was: its digest differs from sha256={expected}")
    return file_digest


def read_picture(trigger: str, file: str, height: int, width: int) -> Tensor:
    """Read a picture as float 3,height,width in [0,1], resized by Pillow's bicubic filter as in the authors' code.

    Raises InputError if the file is not a picture.
    """
    try:
        with Picture.open(file) as picture:
            small = picture.convert("RGB").resize((width, height), Picture.Resampling.BICUBIC)
    except (OSError, ValueError, Picture.DecompressionBombError) as error:
        raise InputError(f"{trigger}: file={file}: not a readable picture: {error}") from None
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
