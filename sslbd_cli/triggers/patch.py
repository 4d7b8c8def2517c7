"""The patch trigger: an opaque square, as in BadNets, SSL-Backdoor and BadEncoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core import boxes as geometry
from sslbd_cli.core.bases import Phase, Trigger
from sslbd_cli.core.device import generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.plugin import key


@dataclass(frozen=True, kw_only=True)
class Patch(Trigger):
    """Paste a square of seeded colour blocks or of one colour (SSL-Backdoor, section 4; BadEncoder, figure 3)."""

    size: float = key(0.2, "side: in pixels from 1 up, below 1 a share of the image's shorter side", low=0.001)
    where: str = key("br", "place of the patch", choices=("tl", "tr", "bl", "br", "center", "random"))
    margin: int = key(1, "pixels left free at the border (BadEncoder leaves one)", low=0)
    fill: str = key("blocks", "blocks (random saturated colours), white, black, or six hexadecimal digits")
    blocks: int = key(4, "colour blocks per side", low=1, high=64)
    seed: int = key(10, "which blocks are drawn")

    def __post_init__(self) -> None:
        super().__post_init__()
        colour(self.fill)

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        shape = height, width, geometry.side(self.size, height, width)
        return geometry.place(count, shape, self.where, self.margin, gen)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator) -> Tensor:
        return geometry.paste(x, self.pattern(int(boxes[0, 2])), boxes)

    def pattern(self, pixels: int) -> Tensor:
        """Return the patch, float 3,pixels,pixels. Blocks are corners of the colour cube, like the HTBA triggers."""
        solid = colour(self.fill)
        if solid is not None:
            return solid.view(3, 1, 1).expand(3, pixels, pixels)
        cells = min(self.blocks, pixels)
        drawn = torch.randint(0, 2, (3, cells, cells), generator=generator(self.seed, "patch")).float()
        nearest = torch.arange(pixels) * cells // pixels
        return drawn[:, nearest][:, :, nearest]


def colour(fill: str) -> Tensor | None:
    """Return the colour named by `fill` as float 3 in [0,1], or None for blocks. Raises InputError for others."""
    digits = {"white": "ffffff", "black": "000000"}.get(fill, fill)
    if digits == "blocks":
        return None
    try:
        if len(digits) != 6 or not digits.isalnum():
            raise ValueError
        return torch.tensor(list(bytes.fromhex(digits))) / 255
    except ValueError:
        raise InputError(f"patch: fill={fill}: expected blocks, white, black or six hexadecimal digits") from None
