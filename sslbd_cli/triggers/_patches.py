"""What patch triggers share: size, place and opacity of a square; and how triggers read pictures from files."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from sslbd_cli.artefacts.files import read_file
from sslbd_cli.artefacts.pictures import read_picture
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _boxes as geometry
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident
from sslbd_cli.words import reason


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
        pixels = int(boxes[0, 2])
        layer = resident(self._layer, pixels, like=x)
        share = self.opacity if self.alpha(pixels) is None else resident(self._share, pixels, like=x)
        return geometry.paste(x, layer, boxes, share)

    def _layer(self, pixels: int) -> Tensor:
        return self.pattern(pixels) * share_of(self.alpha(pixels), self.opacity)

    def _share(self, pixels: int) -> Tensor:
        return torch.as_tensor(share_of(self.alpha(pixels), self.opacity))

    @abstractmethod
    def pattern(self, pixels: int) -> Tensor:
        """Return the patch, float 3,pixels,pixels in [0,1]."""

    def alpha(self, pixels: int) -> Tensor | None:
        """Return the patch's own opacity, float 1,pixels,pixels in [0,1], or None if all of it is opaque."""
        return None


@dataclass(frozen=True)
class Sticker:
    """Hold a picture to lay on images: colours, float 3,H,W in [0,1], and its alpha, 1,H,W, unless all is opaque."""

    colours: Tensor
    alpha: Tensor | None


def share_of(alpha: Tensor | None, opacity: float) -> Tensor | float:
    """Return the share of each pixel that a picture of this alpha hides."""
    return opacity if alpha is None else alpha * opacity


def digest(trigger: str, file: str, expected: str) -> str:
    """Return the sha256 of a trigger's file.

    Raises InputError if the file cannot be read, or if its sha256 is not `expected` ("" accepts any file).
    """
    if not file:
        raise InputError(f"{trigger}: no file is given; give {trigger}:file=PATH")
    return hashlib.sha256(_content(trigger, file, expected)).hexdigest()


def _content(trigger: str, file: str, expected: str) -> bytes:
    """Return the bytes of a trigger's file; their digest is compared before they are used."""
    try:
        data = read_file(file)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{trigger}: file={file}: {reason(error)}; give {trigger}:file=PATH") from None
    if expected not in ("", hashlib.sha256(data).hexdigest()):
        raise InputError(f"{trigger}: {file} is not the file it was: its digest differs from sha256={expected}")
    return data


@functools.lru_cache(maxsize=8)
def read_sticker(trigger: str, file: str, sha256: str, height: int, width: int) -> Sticker:
    """Read a picture, resized by Pillow's bicubic filter as in the authors' code. Its colours count by their alpha.

    Raises InputError if the file is not a picture, or not the one that has this digest.
    """
    data = _content(trigger, file, sha256)
    try:
        picture = read_picture(data)
    except InputError as error:
        raise InputError(f"{trigger}: file={file}: {error}") from None
    image = picture.colours
    if picture.alpha is not None:
        image = image.copy()
        image.putalpha(picture.alpha)  # Pillow then weights colours by their alpha
    pixels = np.asarray(image.resize((width, height), Resampling.BICUBIC)).copy()
    planes = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return Sticker(planes[:3], planes[3:] if picture.alpha is not None else None)
