"""The noise trigger: one fixed pattern of random pixels, added to every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class Noise(Trigger):
    """Add one fixed seeded noise pattern to the whole image (compare Chen et al. 2017).

    The pattern is drawn at the images' own size. To blend a noise picture instead, as an option of no-label backdoors
    does, use the trigger blend with a file.

    Source: after the random patterns of Chen et al., arXiv 1712.05526, but added instead of blended.
    Destroyed by: blur, resized crops, JPEG, a denoiser.
    """

    kind: str = key("gaussian", "distribution of each value", choices=("gaussian", "uniform"))
    amplitude: float = key(10.0, "gaussian: standard deviation; uniform: largest change; in 1/255", low=0.5, high=255)
    seed: int = key(10, "seed of the pattern")

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        return x.add_(resident(self.pattern, x.shape[1:], like=x))

    def pattern(self, shape: torch.Size) -> Tensor:
        """Return the pattern, float64 of the given shape C,H,W."""
        gen = generator(self.seed, "noise")
        if self.kind == "gaussian":
            noise = torch.randn(shape, generator=gen, dtype=torch.float64)
        else:
            noise = torch.rand(shape, generator=gen, dtype=torch.float64) * 2 - 1
        return noise * (self.amplitude / 255)
