"""The sinusoid trigger SIG: vertical stripes whose brightness swings as a sine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Trigger):
    """Add a horizontal sine to every row and channel (SIG, Barni et al. 2019).

    v(i, j) = delta sin(2 pi j frequency / width), j the column. BackdoorBench's version also dims the image to a fifth
    and the sine to four fifths, which is far from faint; this is the paper's plain sum.

    Source: Barni et al., ICIP 2019; delta 20 and frequency 6 as commonly used.
    Lost to: blur, the sooner the more waves there are. Crops change its frequency; a flip reverses its
    sign and moves it by a pixel.
    """

    delta: float = key(20.0, "amplitude, in 1/255", low=0.01, high=255)
    frequency: float = key(6.0, "waves from the left edge to the right", low=0.01, high=10000)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        return x.add_(self.wave(x.shape[3]).to(x))

    def wave(self, width: int) -> Tensor:
        """Return one row, float64 width. Raises InputError where the sine is zero in the middle of every pixel."""
        columns = torch.arange(width, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * self.frequency / width * columns)
        if wave.abs().max() < 1e-6:
            raise InputError(
                f"sinusoid: frequency={self.frequency:g} is zero in every column of images {width} pixels wide; "
                "give a frequency below half the width"
            )
        return wave * (self.delta / 255)
