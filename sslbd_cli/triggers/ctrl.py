"""The frequency trigger CTRL, in closed form: one constant tile of colour difference, added everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger

#: What equal steps of U and V add to R, G and B (kornia's YUV, which the authors' code uses).
RGB_OF_UV = (1.14, -0.396 - 0.581, 2.029)


@dataclass(frozen=True, kw_only=True)
class Ctrl(Trigger):
    """Raise high frequencies of the two colour-difference channels: one constant chroma tile (CTRL, Li et al. 2023).

    The authors go to YUV, take the orthonormal DCT of each window, add the magnitude at (15,15) and (31,31) of U and V,
    and go back. All of it is linear, so it adds the same tile to every image (magnitudes in 1/255). Images that are no
    multiple of the window get the tile cut off at the right and the bottom; smaller ones get its corner.

    The released code stamps with magnitude 100 for training and for testing, the default; the paper, by third parties'
    accounts, trains with 50 and tests with 100: train_magnitude=50. The authors' rounded YUV matrices also
    shift every colour by up to a third of a level, which is left out here. They keep triggered images as floats;
    datasets are rounded to 8 bits here.

    Source: Li et al., ICCV 2023; code meet-cjli/CTRL, window 32.
    Lost to: grayscale (luma is unchanged), blur, JPEG's chroma subsampling; scattered by crops that are resized. A flip
    reverses its sign.
    """

    train_magnitude: float = key(
        100.0, "added to the coefficients of training images (the paper: 50)", low=0.01, high=100000
    )
    test_magnitude: float = key(100.0, "added to the coefficients of test images", low=0.01, high=100000)
    window: int = key(32, "side of the DCT's window in pixels", low=2, high=1024)
    positions: str = key("15+31", "rows (= columns) of the raised coefficients, below the window, joined by +")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raised()

    def raised(self) -> list[int]:
        """Return the positions as numbers. Raises InputError where they are none, or not below the window."""
        words = self.positions.split("+")
        if not all(word.isdecimal() and word.isascii() and int(word) < self.window for word in words):
            raise InputError(
                f"ctrl: positions={self.positions}: expected whole numbers below window={self.window}, joined by +"
            )
        return [int(word) for word in words]

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        magnitude = self.train_magnitude if phase == "train" else self.test_magnitude
        height, width = x.shape[2:]
        rows, columns = (torch.arange(length) % self.window for length in (height, width))
        added = self.tile()[rows][:, columns] * torch.tensor(RGB_OF_UV, dtype=torch.float64).view(3, 1, 1)
        return x.add_((added * (magnitude / 255)).to(x))

    def tile(self) -> Tensor:
        """Return the inverse DCT of ones at the positions, float64 window,window."""
        n = torch.arange(self.window, dtype=torch.float64)
        tile = torch.zeros(self.window, self.window, dtype=torch.float64)
        for k in self.raised():
            wave = torch.cos(math.pi * (2 * n + 1) * k / (2 * self.window)) * math.sqrt((2 if k else 1) / self.window)
            tile += torch.outer(wave, wave)
        return tile
