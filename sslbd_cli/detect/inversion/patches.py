"""Candidate triggers made of free parameters, on a grid that may be coarser than the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.device import Device

#: Largest image of which every pixel is free, and the side of the grid of free pixels of larger images.
FREE, CELLS = 64, 56


def grid(side: int) -> int:
    """Return the side of the grid of parameters of a search on images of `side` pixels."""
    return side if side <= FREE else CELLS


def stretch(parts: Tensor, side: int) -> Tensor:
    """Enlarge a grid K,C,g,g to side x side, bilinearly. A grid of that size stays as it is."""
    if parts.shape[-1] == side:
        return parts
    return F.interpolate(parts, size=(side, side), mode="bilinear", align_corners=False)


class Patches:
    """Masks K,1,H,W and patterns K,3,H,W in [0,1]. Each number of the grid is free: it is the tanh of a parameter.

    Both start uniformly at random. A candidate's size is `scale` times the mean of the mask. by_pattern: the mean of
    mask times pattern instead, so that black pixels cost nothing.
    """

    def __init__(
        self, count: int, side: int, gen: torch.Generator, device: Device, scale: float = 1.0, by_pattern: bool = False
    ) -> None:
        start = torch.rand(count, 4, grid(side), grid(side), generator=gen)
        free = torch.atanh((2 * start - 1) * (1 - 1e-7)).to(device.torch)
        self.parameters = [free.requires_grad_()]
        self.side, self.scale, self.by_pattern = side, scale, by_pattern

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.tanh(stretch(self.parameters[0][which], self.side)) / 2 + 0.5
        mask, pattern = parts[:, :1], parts[:, 1:]
        add = mask * pattern
        return 1 - mask, add, self.scale * (add if self.by_pattern else mask).mean((1, 2, 3))
