"""Patches of images for masked autoencoders: cut, hide and reassemble."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def visible_count(tokens: int, mask: float) -> int:
    """Return how many of `tokens` patches stay visible at a mask ratio, rounded down as in the released code."""
    return int(tokens * (1 - mask) + 1e-9)  # 64 * (1 - 0.75) must not become 15.99


def draw_visible(count: int, tokens: int, mask: float, gen: torch.Generator) -> Tensor:
    """Draw each image's visible patches, int64 count,K on gen's device."""
    order = torch.rand(count, tokens, generator=gen, device=gen.device).argsort(1)
    return order[:, : visible_count(tokens, mask)]


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise uint8 pixels B,3,H,W to the encoder's input."""
    return (pixels.float() / 255 - mean) / std


def fill(x: Tensor, patch: int) -> Tensor:
    """Repeat the last row and column of square images B,3,S,S until the patch size divides S."""
    short = -x.shape[-1] % patch
    return nn.functional.pad(x, (0, short, 0, short), mode="replicate") if short else x


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut square images B,3,S,S (see `fill`) into patches B,T,3*patch*patch, row by row."""
    x = fill(x, patch)
    count, channels, height, width = x.shape
    cells = x.reshape(count, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * patch * patch)


def fold(cells: Tensor, patch: int, size: int) -> Tensor:
    """Reassemble patches B,T,3*patch*patch of square images: B,3,size,size."""
    count, tokens, _ = cells.shape
    side = round(tokens**0.5)
    x = cells.view(count, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(count, 3, side * patch, side * patch)[:, :, :size, :size]


def hidden_patches(visible: Tensor, tokens: int) -> Tensor:
    """Mark the patches that are not in visible B,K: float B,tokens of 0 and 1."""
    return torch.ones(len(visible), tokens, device=visible.device).scatter_(1, visible, 0.0)
