"""The jumbo trigger: one draw from the distribution of triggers that MNTD makes its shadow models with."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _boxes as geometry
from sslbd_cli.triggers._contract import Phase, Trigger

SIDE = 32  # of the images that the distribution was made for, CIFAR-10's
SIDES = (2, 3, 4, 5, SIDE)  # of the pattern; the last fills the image


@dataclass(frozen=True)
class Drawn:
    """A trigger of the distribution. pattern: float64 3,S,S in [0,1]; corner: its place, as shares of the free room."""

    pattern: Tensor
    alpha: float
    corner: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Jumbo(Trigger):
    """Lay a random pattern over a random part of the image, all drawn from the seed (MNTD, Xu et al. 2021).

    Every seed is another trigger, at the same place in all images. On 32-pixel images the side is 2, 3, 4, 5 or 32
    pixels, as likely each; a patch is opaque (one in four) or has an opacity of 0.2 to 0.5, a whole image one of 0.05
    to 0.2; pixels are uniform in 0 to 1 widened by e at both ends, e uniform in 0 to 1, and clipped. Other images get
    the same cells, enlarged. Where small patches do not take in an encoder, `scale` multiplies their sides.

    Source: Xu et al., S&P 2021, jumbo learning; CIFAR-10's numbers of the released code.
    Lost to: small patches to crops and blur, faint ones to noise; whole images to blur.
    """

    seed: int = key(0, "which trigger is drawn")
    scale: float = key(1.0, "factor of a patch's side", low=0.1, high=6)

    @property
    def has_place(self) -> bool:
        return draw(self.seed).pattern.shape[1] < SIDE

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        if not self.has_place:
            return super().place(count, height, width, gen, phase)
        drawn = draw(self.seed)
        side = geometry.side(
            max(1, round(drawn.pattern.shape[1] * self.scale * min(height, width) / SIDE)), height, width
        )
        x, y = (int(share * (length - side + 1)) for share, length in zip(drawn.corner, (width, height), strict=True))
        return torch.tensor([[x, y, side, side]]).repeat(count, 1)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        drawn = draw(self.seed)
        if not self.has_place:
            return geometry.mix(x, enlarged(drawn.pattern, *x.shape[2:]), drawn.alpha)
        side = int(boxes[0, 2])
        return geometry.paste(x, enlarged(drawn.pattern, side, side), boxes, drawn.alpha)


@functools.lru_cache(maxsize=64)
def draw(seed: int) -> Drawn:
    """Draw the trigger of a seed."""
    gen = generator(seed, "jumbo")
    side = SIDES[int(torch.randint(len(SIDES), (1,), generator=gen))]
    alpha, right, down, spill = torch.rand(4, generator=gen, dtype=torch.float64).tolist()
    pixels = torch.rand(3, side, side, generator=gen, dtype=torch.float64)
    pattern = (pixels * (1 + 2 * spill) - spill).clamp(0, 1)
    if side == SIDE:
        return Drawn(pattern, 0.05 + 0.15 * alpha, (right, down))
    alpha = 0.2 + 0.4 * alpha
    return Drawn(pattern, 1.0 if alpha > 0.5 else alpha, (right, down))


def enlarged(pattern: Tensor, height: int, width: int) -> Tensor:
    """Scale a pattern 3,S,S to 3,height,width, by the nearest cell."""
    rows, columns = (torch.arange(length) * pattern.shape[1] // length for length in (height, width))
    return pattern[:, rows][:, :, columns]
