"""The jumbo trigger: one draw from MNTD's distribution of triggers for shadow models."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _boxes as geometry
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident

SIDE = 32  # image side that the distribution was made for (CIFAR-10)
SIDES = (2, 3, 4, 5, SIDE)  # possible sides of the pattern; SIDE fills the image


@dataclass(frozen=True)
class Drawn:
    """Hold one drawn trigger. pattern: float64 3,S,S in [0,1]; corner: its place in shares of the free room (x, y)."""

    pattern: Tensor
    alpha: float
    corner: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Jumbo(Trigger):
    """Lay a random pattern over a random part of the image, all drawn from the seed (MNTD, Xu et al. 2021).

    Each seed gives another trigger, at the same place in all images. On 32-pixel images its side is 2, 3, 4, 5 or 32
    pixels with equal probability. A patch is opaque (one in four) or has an opacity of 0.2 to 0.5; a pattern of the
    whole image has one of 0.05 to 0.2. Pixels are uniform in [-e, 1 + e], e uniform in [0, 1], and clipped to [0, 1].
    Images of other sizes get the same cells, enlarged. If an encoder does not learn small patches, raise `scale`.

    Source: Xu et al., S&P 2021, jumbo learning; CIFAR-10's numbers of the released code.
    Destroyed by: crops and blur if small; noise if faint; blur if it fills the image.
    """

    seed: int = key(0, "seed of the trigger")
    scale: float = key(1.0, "factor on a patch's side", low=0.1, high=6)

    @property
    def has_place(self) -> bool:
        return draw(self.seed).pattern.shape[1] < SIDE

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        if not self.has_place:
            return super().place(count, height, width, gen, phase)
        trigger = draw(self.seed)
        side = geometry.side(
            max(1, round(trigger.pattern.shape[1] * self.scale * min(height, width) / SIDE)), height, width
        )
        x, y = (int(share * (length - side + 1)) for share, length in zip(trigger.corner, (width, height), strict=True))
        return torch.tensor([[x, y, side, side]]).repeat(count, 1)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        alpha = draw(self.seed).alpha
        if not self.has_place:
            return geometry.mix(x, resident(self._layer, *x.shape[2:], like=x), alpha)
        side = int(boxes[0, 2])
        return geometry.paste(x, resident(self._layer, side, side, like=x), boxes, alpha)

    def _layer(self, height: int, width: int) -> Tensor:
        trigger = draw(self.seed)
        return enlarged(trigger.pattern, height, width) * trigger.alpha


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
    """Enlarge a pattern 3,S,S to 3,height,width. Each pixel takes its nearest cell."""
    rows, columns = (torch.arange(length) * pattern.shape[1] // length for length in (height, width))
    return pattern[:, rows][:, :, columns]
