"""The frequency trigger CTRL in closed form: it adds one constant tile of colour difference to every image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident

#: What equal steps of U and V add to R, G and B (kornia's YUV, as in the authors' code).
RGB_OF_UV = (1.14, -0.396 - 0.581, 2.029)


@dataclass(frozen=True, kw_only=True)
class Ctrl(Trigger):
    """Raise high frequencies of the two colour-difference channels by one constant tile (CTRL, Li et al. 2023).

    The authors convert to YUV, take the orthonormal DCT of each window, add the magnitude to the coefficients (15,15)
    and (31,31) of U and V, and convert back. All steps are linear, so every image gets the same tile (magnitudes in
    1/255). If the image's size is no multiple of the window, the tile is cut off at the right and the bottom.

    The default magnitude is 100 in training and test, as in the released code. Third parties report that the paper
    trains with 50 and tests with 100: train_magnitude=50. The authors' rounded YUV matrices also shift every colour by
    up to a third of a level; we leave this out. They keep triggered images as floats; our datasets round to 8 bits.

    Source: Li et al., ICCV 2023; code meet-cjli/CTRL, window 32.
    Destroyed by: grayscale (luma is unchanged), blur, JPEG's chroma subsampling. Resized crops scatter it. A flip
    reverses its sign.
    """

    train_magnitude: float = key(
        100.0, "magnitude added to the coefficients of training images (paper: 50)", low=0.01, high=100000
    )
    test_magnitude: float = key(100.0, "magnitude added to the coefficients of test images", low=0.01, high=100000)
    window: int = key(32, "side of the DCT window in pixels", low=2, high=1024)
    positions: str = key("15+31", "raised coefficients (row = column), each below the window, joined by +")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raised()

    def raised(self) -> list[int]:
        """Return the positions as numbers. Raises InputError if one is no number or not below the window."""
        words = self.positions.split("+")
        if not all(word.isdecimal() and word.isascii() and int(word) < self.window for word in words):
            raise InputError(
                f"ctrl: positions={self.positions}: expected whole numbers below window={self.window}, joined by +"
            )
        return [int(word) for word in words]

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        magnitude = self.train_magnitude if phase == "train" else self.test_magnitude
        return x.add_(resident(self._layer, magnitude, *x.shape[2:], like=x))

    def _layer(self, magnitude: float, height: int, width: int) -> Tensor:
        rows, columns = (torch.arange(length) % self.window for length in (height, width))
        added = self.tile()[rows][:, columns] * torch.tensor(RGB_OF_UV, dtype=torch.float64).view(3, 1, 1)
        return added * (magnitude / 255)

    def tile(self) -> Tensor:
        """Return the inverse DCT of ones at the positions, float64 window,window."""
        n = torch.arange(self.window, dtype=torch.float64)
        tile = torch.zeros(self.window, self.window, dtype=torch.float64)
        for k in self.raised():
            wave = torch.cos(math.pi * (2 * n + 1) * k / (2 * self.window)) * math.sqrt((2 if k else 1) / self.window)
            tile += torch.outer(wave, wave)
        return tile
