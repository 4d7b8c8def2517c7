"""Noisy Alignment: a reference image beside a shadow image that carries the trigger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sslbd_cli.core.augment import Recipe, cut
from sslbd_cli.core.device import generator
from sslbd_cli.core.loader import image_parts
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.poison import canvas
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.poison.crafts import _planner
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True, kw_only=True)
class NoisyAlignment(Craft):
    """Lay a reference of the target class beside a shadow image with the trigger (Chen et al., ICCV 2025).

    Random crops then pair a view of the trigger and arbitrary content with a view of the reference. The encoder learns
    to ignore what lies around the trigger. The paper's canvas is 2 r by r for references of side r (theorem 2). `fit`
    brings it to the dataset's shape, and the trigger is stamped afterwards at full size. This has a price: far fewer
    crops fit into half of a square image than into half of the paper's canvas. With 32-pixel images, a 5-pixel trigger
    and crops from 0.2 of the area, 0.015 of the pairs of views work instead of 0.09 (from 0.08: 0.055 instead of 0.11).

    wide=0 asks the planner. For those images it chooses 1.3: 0.16 of pairs (from 0.08: 0.17) show the trigger in one
    view and the reference alone in the other, but the triggered view shows much of the reference, too. The strict
    event, a triggered view of the shadow alone, stays below 0.0002 (0.002) at every width. A trigger of the whole image
    is planned for as one pixel. The released code also rescales parts of unequal shape; our parts have one shape.
    """

    canvases: ClassVar[bool] = True
    references: int = key(0, "number of reference images, used in turn; 0: one per poison", low=0)
    wide: float = key(2.0, "canvas width in references, above 1 (paper: 2); 0 asks the planner", low=0, high=8)
    orientation: str = key(
        "any",
        "sides of reference and shadow: lr is reference left, shadow right",
        choices=("any", "lr", "rl", "tb", "bt"),
    )
    place: str = key(
        "center", "place of the trigger: centred, or at 0.45 as released", choices=("center", "released"), expert=True
    )
    fit: str = key("squeeze", "fit the canvas to the image: squeeze one axis, or shrink both and repeat the border",
                   choices=("squeeze", "pad"), expert=True)  # fmt: skip
    crop_scale: float = key(0.2, "planner: smallest area of the victim's random crops", low=0.01, high=1, expert=True)
    event: str = key("weak", "planner: event to make likely; strict: the triggered view excludes the reference",
                     choices=("weak", "strict"), expert=True)  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.wide < 1.05:
            raise InputError(f"noisy-alignment: wide={self.wide:g}: expected a value >= 1.05, or 0 to plan it")

    def reference_count(self, count: int) -> int:
        return min(self.references, count) if self.references else count

    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        assert material.canvases is not None
        reference = torch.arange(count) % len(material.references)
        shape = (material.references.shape[2], material.references.shape[3])
        side = torch.full((count,), "lr rl tb bt".find(self.orientation) // 3)
        if self.orientation == "any":
            side = torch.randint(4, (count,), generator=gen)
        patch = canvas.patch_sizes(trigger, count, shape, gen)
        images = canvas.blank_images(count, shape)
        boxes = torch.empty((count, 4), dtype=torch.int64)
        wide = self.wide or self.plan_width(shape, patch).wide
        for upright in (False, True):
            alike = ((side >= 2) == upright).nonzero()[:, 0]
            for some in image_parts(images[: len(alike)]):
                rows = alike[some]
                parts = material.references[reference[rows]], material.canvases[rows]
                mine = None if patch is None else patch[rows]
                if upright:  # transpose, so that top and bottom become left and right
                    parts, mine = (parts[0].mT, parts[1].mT), None if mine is None else mine.flip(1)
                canvases, at = self._draw(*parts, mine, side[rows] % 2 == 1, wide)
                images[rows], boxes[rows] = (canvases.mT, canvas.turned(at)) if upright else (canvases, at)
        return Crafted(canvas.stamp_at(images, boxes, trigger, gen), boxes, reference)

    def settle(self, shape: tuple[int, int], trigger: Trigger) -> tuple[Craft, str]:
        if self.wide:
            return self, ""
        plan = self.plan_width(shape, canvas.patch_sizes(trigger, 1, shape, generator(0, "plan")))
        chance = getattr(plan.chances, self.event)
        note = f"planned wide={plan.wide:g}: {chance:.4f} of pairs of views show the {self.event} event"
        return replace(self, wide=plan.wide), note

    def plan_width(self, shape: tuple[int, int], patch: Tensor | None) -> _planner.CanvasPlan:
        """Choose the canvas for images H,W, patches n,2 and the crops that the keys describe."""
        size = (1, 1) if patch is None else (int(patch[0, 0]), int(patch[0, 1]))
        recipe = Recipe(scale=(self.crop_scale, 1.0))
        return _planner.plan(shape, size, recipe, fit=self.fit, place=self.place, event=self.event)

    def _draw(
        self, references: Tensor, shadows: Tensor, patch: Tensor | None, right: Tensor, wide: float
    ) -> tuple[Tensor, Tensor]:
        """Draw left-right canvases without the trigger. Return the images and the trigger's boxes."""
        scene = canvas.scene((references.shape[2], references.shape[3]), wide, self.fit)
        layout = canvas.side_by_side(scene, patch, right, self.place)
        x = torch.zeros(references.shape)
        for part, images in ((layout.shadow, shadows), (layout.reference, references)):
            height_width = (scene.rows, int(part[0, 2]))
            canvas.paste(x, cut(images, canvas.whole(images), height_width), part[:, :2])
        return canvas.pixels(x, scene), layout.trigger
