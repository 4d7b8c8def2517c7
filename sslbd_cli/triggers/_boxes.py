"""Place a square patch: its side in pixels, its corner (fixed or random), and the paste."""

from __future__ import annotations

import torch
from torch import Tensor

from sslbd_cli.core.device import send
from sslbd_cli.errors import InputError


def side(size: float, height: int, width: int) -> int:
    """Return a patch's side in pixels. A `size` of 1 or more is in pixels; below 1 it is a share of the shorter side.

    Raises InputError if the patch is larger than the image.
    """
    pixels = round(size) if size >= 1 else max(1, round(size * min(height, width)))
    if pixels > min(height, width):
        raise InputError(f"the trigger of {pixels} pixels is larger than the image of {width}x{height}; lower its size")
    return pixels


def fixed(shape: tuple[int, int, int], where: str, margin: int) -> Tensor:
    """Return the top-left corner (x, y), int64 2, of a patch in the centre or `margin` pixels from the border.

    shape: height, width, patch side. Raises InputError if patch and margin together are larger than the image.
    """
    height, width, pixels = shape
    free = torch.tensor([width - pixels, height - pixels])
    if where == "center":
        return free // 2
    if margin > free.min():
        raise InputError(
            f"the trigger of {pixels} pixels with margin={margin} does not fit the image of {width}x{height}; "
            f"give margin={int(free.min())} at most, or lower its size"
        )
    at_far_end = torch.tensor([where[1] == "r", where[0] == "b"])
    return torch.where(at_far_end, free - margin, margin)


def wander(count: int, shape: tuple[int, int, int], low: float, high: float, gen: torch.Generator) -> Tensor:
    """Draw each image's top-left corner (x, y), int64 count,2, from {int(low L), ..., int(high L - side)}.

    L is the image's length along that axis. Both ends are included. If the upper end is below the lower end, the patch
    begins at `low`, as in SSL-Backdoor's generate_poison.py. shape: height, width, patch side. Raises InputError if a
    patch that begins at `low` leaves the image.
    """
    height, width, pixels = shape
    first, options = [], []
    for length in (width, height):
        lower = int(low * length)
        upper = max(int(high * length - pixels), lower)
        if lower + pixels > length:
            raise InputError(
                f"the trigger of {pixels} pixels leaves the image of {width}x{height} where it begins at {low:g} of a "
                "side; lower its size or its range of random places"
            )
        first.append(lower)
        options.append(upper - lower + 1)
    # each image takes two numbers from one draw, so a batch gets the same numbers as its images one by one
    draws = torch.rand(count, 2, generator=gen, dtype=torch.float64)
    return torch.tensor(first) + (draws * torch.tensor(options)).long()


def paste(x: Tensor, layer: Tensor, boxes: Tensor, opacity: float | Tensor = 1.0) -> Tensor:
    """Paste a layer C,S,S (see `mix`) into images x B,C,H,W at boxes B,4 of side S, which are on the CPU.

    opacity: of the patch, or of each of its pixels, 1,S,S. Changes x in place and returns it.
    """
    channels, pixels = layer.shape[0], layer.shape[-1]
    corners = boxes[:, :2]
    if bool((corners == corners[:1]).all()):  # one place needs no numbers on the device
        left, top = corners[0].tolist()
        place = x[:, :, top : top + pixels, left : left + pixels]
        place.copy_(mix(place, layer, opacity))
        return x
    columns, rows = send(corners.T[:, :, None] + torch.arange(pixels), x.device)  # B,S each
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    at = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
    x[at] = mix(x[at], layer, opacity)
    return x


def mix(x: Tensor, layer: Tensor, share: float | Tensor) -> Tensor:
    """Return (1 - share) x + layer. The layer is share times the picture, with the device and dtype of x.

    The sum is rounded twice on purpose: torch.lerp and addcmul fuse it on some devices, so CPU and GPU would differ.
    """
    return x * (1 - share) + layer
