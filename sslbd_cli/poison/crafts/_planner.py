"""Plan a canvas: estimate how often two random crops are the pair of views that a crafted poison needs.

Noisy Alignment (Chen et al., ICCV 2025) and CorruptEncoder (Zhang et al., CVPR 2024) both need one view that holds the
trigger and one that shows the reference alone. Their theorems assume square crops of one size. Here the boxes are those
of RandomResizedCrop, drawn as `augment` draws them, from the stored image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.augment import Recipe, crop_boxes
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.canvas import CanvasLayout, scene, side_by_side

PAIRS = 50_000
WIDES = tuple(tenth / 10 for tenth in range(11, 31))


@dataclass(frozen=True)
class Chances:
    """Hold probabilities per pair of views; either view may be the first.

    weak: one view holds the whole trigger and the other lies inside the reference. strict: in addition, the view with
    the trigger lies inside the shadow image (the event of Noisy Alignment's theorems).
    """

    weak: float
    strict: float


@dataclass(frozen=True)
class CanvasPlan:
    """Hold the chosen canvas: its width in references, and its chances."""

    wide: float
    chances: Chances


def views(shape: tuple[int, int], recipe: Recipe, pairs: int = PAIRS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the crop boxes of two views of images H,W, each float32 pairs,4 (x, y, width, height)."""
    gen = generator(seed, "planner")
    return crop_boxes(pairs, shape, recipe, gen), crop_boxes(pairs, shape, recipe, gen)


def chances(layout: CanvasLayout, pair: tuple[Tensor, Tensor]) -> Chances:
    """Estimate the chances of a layout. The layout is the same for all pairs of views, or one per pair.

    With one layout for all, the two views are independent, and a chance is the product of shares of single views. Its
    spread over 12 seeds of 50,000 pairs is smaller than that of counted pairs (0.094: 0.0010, not 0.0015; 0.0002:
    0.00001, not 0.00008). This requires a trigger outside the reference.
    """
    if len(layout.trigger) == 1:
        both = torch.cat(pair)
        holds, inside = _inside(layout.trigger, both), _inside(both, layout.reference).double().mean().item()
        apart = holds & _inside(both, layout.shadow)
        return Chances(*(2 * inside * event.double().mean().item() for event in (holds, apart)))
    first, second = pair
    weak, strict = torch.zeros(2, len(first), dtype=torch.bool)
    for one, other in ((first, second), (second, first)):
        event = _inside(layout.trigger, one) & _inside(other, layout.reference)
        weak |= event
        strict |= event & _inside(one, layout.shadow)
    return Chances(weak.double().mean().item(), strict.double().mean().item())


def _inside(inner: Tensor, outer: Tensor) -> Tensor:
    """Return which rectangles (1 or n),4 lie inside others, bool n."""
    starts, ends = inner[:, :2] >= outer[:, :2], inner[:, :2] + inner[:, 2:] <= outer[:, :2] + outer[:, 2:]
    return (starts & ends).all(1)


def plan(
    shape: tuple[int, int], patch: tuple[int, int], recipe: Recipe, *, fit: str, place: str, event: str
) -> CanvasPlan:
    """Choose the width of a canvas, in references, for random crops by `recipe` of images H,W.

    patch: the trigger's width and height; fit, place: as in side_by_side; event: weak or strict. All widths are judged
    on the same crops, so that the draw does not decide their order. Raises InputError if the trigger fits no width, or
    if the event never happened.
    """
    pair = views(shape, recipe)
    best: CanvasPlan | None = None
    for wide in WIDES:
        parts = scene(shape, wide, fit)
        if parts.rows < patch[1] or shape[1] - parts.split < patch[0]:
            continue
        # the released place is not mirrored with the canvas, so the two orientations differ
        sides = [side_by_side(parts, torch.tensor([patch]), torch.tensor([right]), place) for right in (False, True)]
        left, right = (chances(layout, pair) for layout in sides)
        candidate = CanvasPlan(wide, Chances((left.weak + right.weak) / 2, (left.strict + right.strict) / 2))
        if best is None or getattr(candidate.chances, event) > getattr(best.chances, event):
            best = candidate
    if best is None or getattr(best.chances, event) == 0:
        raise InputError(
            f"no canvas of {shape[1]}x{shape[0]} pixels gives the {event} event with a trigger of "
            f"{patch[0]}x{patch[1]} and crops from {recipe.scale[0]:g} of the area; lower its size or crop_scale"
        )
    return best
