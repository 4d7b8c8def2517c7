"""A frame of black and white cells around the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger


@dataclass(frozen=True, kw_only=True)
class CheckerFrame(Trigger):
    """Paint a frame of black and white cells around the image.

    Each cell is a square whose side is the width of the frame. Random crops of more than half of an image nearly always
    show a part of the frame, so a victim sees this trigger more often than a patch in one corner.

    Source: made for this example, 2026, after the chequered patch of Gu et al., 2017 (BadNets).
    Destroyed by: crops from the middle of the image. Grayscale keeps it; blur by a cell or more makes it grey.
    """

    width: int = key(1, "width of the frame in pixels", low=1)
    opacity: float = key(1.0, "opacity of the frame; 1 hides the image below it", low=0.01, high=1)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        """Change x, float B,C,H,W in [0,1]. Raises InputError if the frame hides the whole image."""
        height, width = x.shape[2:]
        if 2 * self.width >= min(height, width):
            raise InputError(f"{self.name}: width={self.width} hides the whole image of {width}x{height}; lower width")
        rows, columns = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        cells = (rows // self.width + columns // self.width).remainder(2).to(x.dtype)  # H,W
        inside = (rows >= self.width) & (rows < height - self.width)
        inside = inside & (columns >= self.width) & (columns < width - self.width)
        return torch.where(inside, x, x.lerp(cells.expand_as(x), self.opacity))
