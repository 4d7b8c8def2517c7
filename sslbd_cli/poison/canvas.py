"""Compose crafted poisons: a reference image beside another image that carries the trigger.

The papers' canvases are about twice as wide as high, but all images of a dataset have one shape. `fit` says how a
canvas gets this shape: `squeeze` shrinks one axis only; `pad` shrinks both and repeats the first and the last row. The
trigger is stamped afterwards at its full size, so that it equals the trigger of the test images.

Squeeze is the default, because random crops are drawn from the final image. Both papers want one view that holds the
trigger and one view inside the reference. For a 5-pixel trigger on 32-pixel images and a canvas twice as wide as high,
this event has probability 0.055 squeezed and 0.011 padded for crops of 0.08 to 1 of the area, and 0.015 and 0.0006 for
crops of 0.2 to 1. On the 2:1 canvas itself it would be 0.11 and 0.09: half of a square image is smaller than most
square crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.artefacts import paging
from sslbd_cli.core.loader import image_parts
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True)
class Scene:
    """Place the two parts in an image H,W: rows top ... top + rows; the reference is `split` columns wide."""

    shape: tuple[int, int]
    split: int
    top: int
    rows: int


@dataclass(frozen=True)
class CanvasLayout:
    """Hold rectangles (1 or n),4 (x, y, width, height) in images H,W: the two parts and the trigger."""

    shape: tuple[int, int]
    reference: Tensor
    shadow: Tensor
    trigger: Tensor


def scene(shape: tuple[int, int], wide: float, fit: str) -> Scene:
    """Fit a canvas, `wide` times as wide as its reference, into an image H,W. fit: squeeze or pad."""
    height, width = shape
    rows = height if fit == "squeeze" else max(1, round(height / wide))
    split = min(max(1, round(width / wide)), width - 1)
    return Scene(shape, split, (height - rows) // 2, rows)


def patch_sizes(trigger: Trigger, count: int, shape: tuple[int, int], gen: torch.Generator) -> Tensor | None:
    """Return the trigger's widths and heights, int64 count,2, in images H,W; None if it fills the whole image."""
    return trigger.place(count, *shape, gen, "train")[:, 2:] if trigger.has_place else None


def room(part: Tensor, patch: Tensor) -> Tensor:
    """Return how much larger parts n,4 are than patches n,2, per axis. Raises InputError if a patch does not fit."""
    free = part[:, 2:] - patch
    if (free < 0).any():
        (wide, high), (width, height) = patch[0].tolist(), part[0, 2:].tolist()
        raise InputError(
            f"a trigger of {wide}x{high} pixels does not fit beside the reference, where {width}x{height} are free; "
            "lower the trigger's size or raise the craft's wide"
        )
    return free


def side_by_side(scene: Scene, patch: Tensor | None, right: Tensor, place: str) -> CanvasLayout:
    """Put references on the left (on the right where `right`, bool n) and the trigger into the shadow image.

    patch: int64 n,2; with None the trigger fills the shadow image. place: `center`, or `released` for the authors'
    code, where the patch begins at 0.45 of each side, also on the mirrored canvas.
    """
    rest = scene.shape[1] - scene.split
    reference = rectangle(right * rest, scene, torch.full(right.shape, scene.split))
    shadow = rectangle(~right * scene.split, scene, torch.full(right.shape, rest))
    if patch is None:
        return CanvasLayout(scene.shape, reference, shadow, shadow)
    free = room(shadow, patch)
    if place == "center":  # an odd spare pixel goes to the border's side, so that the canvas mirrors exactly
        offset = torch.stack([torch.where(right, free[:, 0] - free[:, 0] // 2, free[:, 0] // 2), free[:, 1] // 2], 1)
    else:
        offset = torch.minimum((shadow[:, 2:] * 0.45).long(), free)
    return CanvasLayout(scene.shape, reference, shadow, torch.cat([shadow[:, :2] + offset, patch.expand_as(offset)], 1))


def rectangle(x: Tensor, scene: Scene, width: Tensor) -> Tensor:
    """Return rectangles int64 n,4 of the scene's full height at columns x with the given widths, int64 n."""
    return torch.stack([x, torch.full_like(x, scene.top), width, torch.full_like(x, scene.rows)], 1)


def mirrored(boxes: Tensor, width: int, where: Tensor) -> Tensor:
    """Mirror boxes n,4 left to right in images `width` pixels wide, in the rows where `where` (bool n) is true."""
    other = torch.cat([width - boxes[:, :1] - boxes[:, 2:3], boxes[:, 1:]], 1)
    return torch.where(where[:, None], other, boxes)


def turned(boxes: Tensor) -> Tensor:
    """Swap the axes of boxes n,4."""
    return boxes[:, [1, 0, 3, 2]]


def whole(images: Tensor) -> Tensor:
    """Return the box 1,4 of a whole image B,C,H,W."""
    return torch.tensor([[0, 0, images.shape[3], images.shape[2]]])


def outlines(masks: Tensor) -> Tensor:
    """Return the bounding boxes int64 R,4 of masks uint8 R,H,W above 127. Raises InputError for an empty mask."""
    full = masks > 127
    empty = (~full.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"the mask of reference {empty[0]} is empty; give masks that are above 127 on the object")
    spans = []
    for line in (full.any(1).byte(), full.any(2).byte()):  # which columns, which rows
        first = line.argmax(1)
        spans.append((first, line.shape[1] - line.flip(1).argmax(1) - first))
    (x, width), (y, height) = spans
    return torch.stack([x, y, width, height], 1)


def soft(masks: Tensor) -> Tensor:
    """Blur masks float n,1,h,w by a Gaussian with a standard deviation of 1 pixel. The border is repeated."""
    bell = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    bell = bell / bell.sum()
    padded = nn.functional.pad(masks, (3, 3, 3, 3), mode="replicate")
    rows = nn.functional.conv2d(padded, bell.view(1, 1, 7, 1))
    return nn.functional.conv2d(rows, bell.view(1, 1, 1, 7))


def blank(scene: Scene, content: Tensor) -> Tensor:
    """Return black images float n,3,H,W whose scene rows hold `content`, n,3,rows,W."""
    above, below = scene.top, scene.shape[0] - scene.top - scene.rows
    return nn.functional.pad(content, (0, 0, above, below))


def paste(x: Tensor, tiles: Tensor, corners: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Lay tiles n,C,h,w (opacity alpha n,1,h,w) over images x n,C,H,W at corners n,2 (x, y). Changes and returns x."""
    height, width = tiles.shape[2:]
    at = (
        torch.arange(len(x))[:, None, None, None],
        torch.arange(x.shape[1])[None, :, None, None],
        (corners[:, 1:2] + torch.arange(height))[:, None, :, None],
        (corners[:, 0:1] + torch.arange(width))[:, None, None, :],
    )
    x[at] = tiles if alpha is None else torch.lerp(x[at], tiles, alpha)
    return x


def pixels(x: Tensor, scene: Scene) -> Tensor:
    """Convert scenes n,3,H,W in [0,1] to uint8 images. Where the scene is padded, its outer rows are repeated."""
    nearest = torch.arange(scene.shape[0]).clamp(scene.top, scene.top + scene.rows - 1)
    return x[:, :, nearest].mul(255).round().to(torch.uint8)


def blank_images(count: int, shape: Sequence[int]) -> Tensor:
    """Return images uint8 count,3,H,W to be filled. Many of them do not fill the memory."""
    return torch.from_numpy(paging.empty((count, 3, *shape[-2:])))


def stamp_at(images: Tensor, boxes: Tensor, trigger: Trigger, gen: torch.Generator) -> Tensor:
    """Stamp uint8 images n,3,H,W inside boxes n,4 only.

    A patch is put into the box. A trigger of the whole image is stamped as on test images, then cut to the box.
    """
    height, width = images.shape[2:]
    stamped = blank_images(len(images), images.shape)
    for some in image_parts(images):
        part, box = images[some], boxes[some]
        if trigger.has_place:
            stamped[some] = trigger(part, gen, "train", box).images
            continue
        x, y, wide, high = box.view(-1, 4, 1, 1, 1).unbind(1)
        row, column = torch.arange(height).view(-1, 1), torch.arange(width)
        inside = (column >= x) & (column < x + wide) & (row >= y) & (row < y + high)  # n,1,H,W
        stamped[some] = torch.where(inside, trigger(part, gen, "train").images, part)
    return stamped
