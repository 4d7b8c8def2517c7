"""Where a patch goes: sides in pixels or as a share of the image, corners or a random range, pasted in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from sslbd_cli.core.errors import InputError

PLACES = ("tl", "tr", "bl", "br", "center", "random")


def side(size: float, height: int, width: int) -> int:
    """Return a patch's side in pixels: `size` itself from 1 up, below 1 a share of the shorter side.

    Raises InputError where the patch is larger than the image.
    """
    pixels = round(size) if size >= 1 else max(1, round(size * min(height, width)))
    if pixels > min(height, width):
        raise InputError(f"the trigger of {pixels} pixels is larger than the image of {width}x{height}; lower its size")
    return pixels


def place(count: int, shape: tuple[int, int, int], where: str, margin: int, gen: torch.Generator) -> Tensor:
    """Return boxes int64 count,4 (x, y, width, height) of square patches. shape: height, width, patch side.

    `random` draws each image's corner so that the patch keeps `margin` pixels from the border.
    """
    height, width, pixels = shape
    free_x, free_y = width - pixels, height - pixels
    margin = min(margin, free_x // 2, free_y // 2)
    near_x, far_x, near_y, far_y = margin, free_x - margin, margin, free_y - margin
    if where == "random":
        # one draw of two numbers per image, so that a batch draws what its images would one by one
        draws = torch.rand(count, 2, generator=gen, dtype=torch.float64)
        x = near_x + (draws[:, 0] * (far_x - near_x + 1)).long()
        y = near_y + (draws[:, 1] * (far_y - near_y + 1)).long()
        corner = torch.stack([x, y], dim=1)
    else:
        corners = {
            "tl": (near_x, near_y),
            "tr": (far_x, near_y),
            "bl": (near_x, far_y),
            "br": (far_x, far_y),
            "center": (free_x // 2, free_y // 2),
        }
        corner = torch.tensor([corners[where]]).repeat(count, 1)
    return torch.cat([corner, torch.full((count, 2), pixels)], dim=1)


def paste(x: Tensor, patch: Tensor, boxes: Tensor, opacity: float = 1.0) -> Tensor:
    """Paste patch C,S,S into images x B,C,H,W at boxes B,4 of side S, in place; returns x."""
    channels, pixels = patch.shape[0], patch.shape[-1]
    span = torch.arange(pixels)
    rows = (boxes[:, 1, None] + span).to(x.device)  # B,S
    columns = (boxes[:, 0, None] + span).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    at = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
    x[at] = torch.lerp(x[at], patch.to(x), opacity)
    return x
