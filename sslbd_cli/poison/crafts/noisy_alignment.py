"""Noisy Alignment: a reference image beside a shadow image that carries the trigger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sslbd_cli.core.augment import Recipe, cut
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.poison import canvas
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.poison.crafts import _planner
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True, kw_only=True)
class NoisyAlignment(Craft):
    """Lay a reference of the target class beside a shadow image with the trigger (Chen et al., ICCV 2025).

    Random crops then pair a view of trigger and arbitrary content with a view of the reference: the encoder is taught
    to ignore what the trigger stands on. The paper's canvas is 2 r by r for references of side r (theorem 2); it is
    brought to the dataset's shape by `fit`, and the trigger is stamped after that, at full size. That costs: on square
    images far fewer crops fit into half the width than on the paper's canvas (0.015 of pairs of views instead of 0.09
    for 32 pixels, a 5-pixel trigger and crops from 0.2 of the area; 0.055 instead of 0.11 from 0.08).

    wide=0 asks the planner. For those images it chooses 1.3, so that 0.16 of pairs (0.17 from 0.08) show the trigger in
    one view and the reference alone in the other; the triggered view then shows much of the reference, too. The strict
    event, a triggered view of the shadow alone, stays below 0.0002 (0.002) whatever the width. A trigger without a
    place is planned for as one pixel. The released code also rescales parts of unequal shape; ours have one shape.
    """

    canvases: ClassVar[bool] = True
    references: int = key(0, "how many reference images, used in turn; 0 for one per poison", low=0)
    wide: float = key(2.0, "canvas width in references, above 1 (2 is the paper's); 0 asks the planner", low=0, high=8)
    orientation: str = key(
        "any", "side of the reference: l, r, t, b, then the shadow's", choices=("any", "lr", "rl", "tb", "bt")
    )
    place: str = key("center", "trigger: centred, or at 0.45 as released", choices=("center", "released"), expert=True)
    fit: str = key("squeeze", "bring the canvas to the image's shape: shrink one axis, or both and repeat the border",
                   choices=("squeeze", "pad"), expert=True)  # fmt: skip
    crop_scale: float = key(0.2, "planner: smallest area of the victim's random crops", low=0.01, high=1, expert=True)
    event: str = key("weak", "planner: what is made likely; strict keeps the triggered view off the reference",
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
        images = torch.empty((count, 3, *shape), dtype=torch.uint8)
        boxes = torch.empty((count, 4), dtype=torch.int64)
        wide = self.wide or self.planned(shape, patch).wide
        for upright in (False, True):
            alike = ((side >= 2) == upright).nonzero()[:, 0]
            for some in canvas.chunks(len(alike)):
                rows = alike[some]
                parts = material.references[reference[rows]], material.canvases[rows]
                mine = None if patch is None else patch[rows]
                if upright:  # top and bottom are left and right of the transposed image
                    parts, mine = (parts[0].mT, parts[1].mT), None if mine is None else mine.flip(1)
                drawn, at = self._draw(*parts, mine, side[rows] % 2 == 1, wide)
                images[rows], boxes[rows] = (drawn.mT, canvas.turned(at)) if upright else (drawn, at)
        return Crafted(canvas.stamp_at(images, boxes, trigger, gen), boxes, reference)

    def settled(self, shape: tuple[int, int], trigger: Trigger) -> tuple[Craft, str]:
        if self.wide:
            return self, ""
        plan = self.planned(shape, canvas.patch_sizes(trigger, 1, shape, generator(0, "plan")))
        chance = getattr(plan.chances, self.event)
        told = f"planned wide={plan.wide:g}: {chance:.4f} of pairs of views show the {self.event} event"
        return replace(self, wide=plan.wide), told

    def planned(self, shape: tuple[int, int], patch: Tensor | None) -> _planner.CanvasPlan:
        """Choose the canvas for the crops that the keys describe, in images of shape H,W and for patches n,2."""
        size = (1, 1) if patch is None else (int(patch[0, 0]), int(patch[0, 1]))
        recipe = Recipe(scale=(self.crop_scale, 1.0))
        return _planner.plan(shape, size, recipe, fit=self.fit, place=self.place, event=self.event)

    def _draw(
        self, references: Tensor, shadows: Tensor, patch: Tensor | None, right: Tensor, wide: float
    ) -> tuple[Tensor, Tensor]:
        """Draw left-right canvases without the trigger; return them and the trigger's boxes."""
        scene = canvas.scene((references.shape[2], references.shape[3]), wide, self.fit)
        layout = canvas.side_by_side(scene, patch, right, self.place)
        x = torch.zeros(references.shape)
        for part, images in ((layout.shadow, shadows), (layout.reference, references)):
            height_width = (scene.rows, int(part[0, 2]))
            canvas.paste(x, cut(images, canvas.whole(images), height_width), part[:, :2])
        return canvas.pixels(x, scene), layout.trigger
