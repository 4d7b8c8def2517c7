"""The warp trigger WaNet: one smooth field of shifts bends every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.core.device import generator
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class Warp(Trigger):
    """Bend the whole image by one smooth random field of small shifts (WaNet, Nguyen and Tran 2021).

    Shifts are drawn on a grid of control points, scaled to a mean size of 1, interpolated bicubically to the image's
    size and multiplied by half the strength, in pixels. Each pixel is then read bilinearly at its shifted place, never
    from outside the image. WaNet's noise mode needs control of supervised training; data poisoning has no counterpart.

    Source: Nguyen and Tran, ICLR 2021 (arXiv 2102.10369); k 4 and s 0.5 as in their code.
    Destroyed by: resized crops, which move pixels much further and at random; blur. Images without edges do not show
    it.
    """

    points: int = key(4, "control points per side (k)", low=2, high=64)
    strength: float = key(0.5, "twice the mean shift at the control points, in pixels (s)", low=0.01, high=100)
    seed: int = key(10, "seed of the field")

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        corners = resident(self._corners, *x.shape[2:], like=x, dtype=torch.int64)
        weights = resident(self._weights, *x.shape[2:], like=x)
        pixels = x.flatten(2)  # B,C,HW
        # plain products and sums, because grid_sample rounds differently on each device
        warped = sum(pixels[:, :, at] * share for at, share in zip(corners, weights, strict=True))
        return torch.as_tensor(warped).view_as(x)

    def _corners(self, height: int, width: int) -> Tensor:
        return bilinear(self.field(height, width))[0]

    def _weights(self, height: int, width: int) -> Tensor:
        return bilinear(self.field(height, width))[1]

    def field(self, height: int, width: int) -> Tensor:
        """Return where each pixel is read, float64 2,H,W: x and y in pixels, within the image."""
        offsets = (
            torch.rand(1, 2, self.points, self.points, generator=generator(self.seed, "warp"), dtype=torch.float64) * 2
            - 1
        )
        smooth = nn.functional.interpolate(
            offsets / offsets.abs().mean(), (height, width), mode="bicubic", align_corners=True
        )[0]
        last = torch.tensor([width - 1, height - 1]).view(2, 1, 1)
        # the authors add s/side to coordinates in [-1, 1], where a step of 2 spans side - 1 pixels
        shifts = smooth * self.strength * last / (2 * (last + 1))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.minimum((torch.stack([x, y]) + shifts).clamp(min=0), last)


def bilinear(field: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each place 2,H,W, int64 4,HW (indices into H,W), and their weights, float64."""
    height, width = field.shape[1:]
    low = field.floor().long()
    right, down = (field - low).flatten(1)  # HW each
    x, y = low.flatten(1)
    far_x, far_y = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    corners = [y * width + x, y * width + far_x, far_y * width + x, far_y * width + far_x]
    weights = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]
    return torch.stack(corners), torch.stack(weights)
