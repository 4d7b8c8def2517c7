"""The sinusoid trigger SIG: vertical stripes whose brightness follows a sine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Trigger):
    """Add a horizontal sine to every row and channel (SIG, Barni et al. 2019).

    v(i, j) = delta sin(2 pi j frequency / width), where j is the column. This is the paper's plain sum. BackdoorBench's
    version scales the image by 1/5 and the sine by 4/5, which is far from faint.

    Source: Barni et al., ICIP 2019; delta 20 and frequency 6 as commonly used.
    Destroyed by: blur, more so at high frequency. Crops change its frequency. A flip reverses its sign and moves it by
    a pixel.
    """

    delta: float = key(20.0, "amplitude in 1/255", low=0.01, high=255)
    frequency: float = key(6.0, "waves per image width", low=0.01, high=10000)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        return x.add_(resident(self.wave, x.shape[3], like=x))

    def wave(self, width: int) -> Tensor:
        """Return one row, float64 width. Raises InputError if the sine is zero in every column."""
        columns = torch.arange(width, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * self.frequency / width * columns)
        if wave.abs().max() < 1e-6:
            raise InputError(
                f"sinusoid: frequency={self.frequency:g} is zero in every column of images {width} pixels wide; "
                "give a frequency below half the width"
            )
        return wave * (self.delta / 255)
