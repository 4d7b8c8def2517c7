"""Universal changes of an image under a budget of strength: patches, blends, noise and low frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import Device

#: What a budget is of. patch: a mask's mean; blend: the share of a picture laid over the whole image; noise and
#: low-frequency: the largest change of a pixel, added, the latter made of the lowest frequencies of a cosine transform.
FAMILIES = ("patch", "blend", "noise", "low-frequency")


@dataclass(frozen=True)
class Budget:
    """One candidate: a family and how strong it may be, in (0, 1]."""

    family: str
    strength: float


def cosine_basis(side: int, band: int) -> Tensor:
    """Return the lowest functions of the cosine transform (DCT-II) on `side` pixels: float band,side, of norm 1."""
    x = (torch.arange(side) + 0.5) * math.pi / side
    basis = torch.cos(torch.arange(band)[:, None] * x) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    lowest: Tensor = basis
    return lowest


class Bounded:
    """Candidates that never exceed their budgets, whatever their parameters float K,4,H,W: one mask and three colours.

    spread: how far the random start is from nothing; far ones are saturated, as strong as their budget lets them be.
    """

    def __init__(
        self, budgets: list[Budget], side: int, band: int, gen: torch.Generator, device: Device, spread: float = 1.0
    ) -> None:
        free = spread * torch.randn(len(budgets), 4, side, side, generator=gen)
        self.parameters = [free.to(device.torch).requires_grad_()]
        self.budgets, self.band = budgets, band
        self.basis = cosine_basis(side, band).to(device.torch)

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = [self._one(self.budgets[number], self.parameters[0][number]) for number in which.tolist()]
        keep, add = (torch.stack(parts) for parts in zip(*made, strict=True))
        return keep, add, torch.tensor([self.budgets[number].strength for number in which.tolist()]).to(keep)

    def _one(self, budget: Budget, free: Tensor) -> tuple[Tensor, Tensor]:
        mask, colours = free[:1], free[1:]
        if budget.family == "patch":
            # the budget is dealt out to the pixels; what is more than the whole of one is lost: the mean is at most it
            share = torch.softmax(mask.flatten(), 0).view_as(mask) * (budget.strength * mask.numel())
            whole = share.clamp(max=1)
            return 1 - whole, whole * (torch.tanh(colours) / 2 + 0.5)
        if budget.family == "blend":
            return torch.full_like(mask, 1 - budget.strength), budget.strength * (torch.tanh(colours) / 2 + 0.5)
        if budget.family == "low-frequency":
            few = colours[:, : self.band, : self.band]
            colours = self.basis.T @ few @ self.basis
            colours = colours / colours.detach().square().mean().sqrt().clamp(
                min=1e-6
            )  # whatever the band, of unit size
        return torch.ones_like(mask), budget.strength * torch.tanh(colours)
