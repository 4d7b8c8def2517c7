"""CorruptEncoder: a reference object on a background, with the trigger beside the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sslbd_cli.core.augment import cut
from sslbd_cli.core.loader import image_parts
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.poison import canvas
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.triggers._contract import Trigger

JITTER = 0.05  # largest distance of the object from its border, in canvas widths
GAP = 0.125  # smallest distance of the trigger from the object and from the other border, in canvas widths
MIDDLE = (0.25, 0.75)  # rows that the trigger may use, in canvas heights


@dataclass(frozen=True, kw_only=True)
class CorruptEncoder(Craft):
    """Put a reference object beside the trigger on a background (CorruptEncoder, Zhang et al., CVPR 2024).

    The geometry is that of generate_poisoned_images.py. The canvas has the object's height and twice its width. The
    object stands at the left or the right with 5 % jitter. The trigger lies in the other half, in the middle half of
    the height, 12.5 % of the width from object and border. Few references meet many backgrounds. Masks cut out the
    objects (bounding box, edge blurred by radius 1); without masks the whole reference is the object. `support` gives
    CorruptEncoder+.

    Differences from the released code: `fit` brings the canvas to the dataset's shape, and the trigger is stamped
    afterwards at full size. A trigger wider than a quarter of the image has no place with that distance; it goes to the
    middle of the interval, off the object, while the authors' code draws from the reversed interval and may cover the
    object. Masks are blurred after resizing. Top-bottom canvases are in the paper but not in its code, and not here.
    """

    canvases: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    references: int = key(3, "number of reference images, used in turn", low=1)
    wide: float = key(2.0, "canvas width in objects, above 1", low=1.05, high=8)
    fit: str = key("squeeze", "fit the canvas to the image: squeeze one axis, or shrink both and repeat the border",
                   choices=("squeeze", "pad"), expert=True)  # fmt: skip
    support: float = key(0.0, "share of poisons without a trigger that show a support image beside a reference "
                         "(CorruptEncoder+: 0.2)", low=0, high=1)  # fmt: skip
    support_images: int = key(
        5, "number of support images, other images of the target class, if support is above 0", low=1
    )

    def reference_count(self, count: int) -> int:
        paired = self.paired(count)
        return min(self.references, count - paired) + min(self.support_images, paired)

    def paired(self, count: int) -> int:
        """Return how many of `count` poisons show a support image instead of the trigger; never all."""
        return min(round(self.support * count), count - 1)

    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        carriers = torch.arange(count - self.paired(count))
        reference = torch.arange(count) % min(self.references, len(material.references))
        images = canvas.blank_images(count, material.references.shape)
        boxes = torch.zeros((count, 4), dtype=torch.int64)
        carrying, boxes[carriers] = self._carriers(material, reference[carriers], trigger, gen)
        images[carriers] = canvas.stamp_at(carrying, boxes[carriers], trigger, gen)
        if len(carriers) < count:
            images[len(carriers) :] = self._pairs(material.references, reference[len(carriers) :], gen)
        return Crafted(images, boxes, reference)

    def layout(self, scene: canvas.Scene, patch: Tensor | None, u: Tensor) -> canvas.CanvasLayout:
        """Place objects and triggers. patch: int64 n,2, or None for the whole other part; u: n,4 uniform numbers."""
        width = scene.shape[1]
        rest = torch.full((len(u),), width - scene.split)
        spare = rest - 1 if patch is None else canvas.room(canvas.rectangle(0 * rest, scene, rest), patch)[:, 0]
        x = torch.minimum((u[:, 0] * JITTER * width).long(), spare)
        reference = canvas.rectangle(x, scene, torch.full_like(x, scene.split))
        shadow = canvas.rectangle(x + scene.split, scene, rest - x)
        trigger_box = shadow
        if patch is not None:
            across = _between(x + scene.split, width, GAP * width, patch[:, 0], u[:, 1])
            edge = MIDDLE[0] * scene.rows
            down = _between(0 * x, scene.rows, edge, patch[:, 1], u[:, 2]) + scene.top
            trigger_box = torch.cat([across[:, None], down[:, None], patch], 1)
        right = u[:, 3] < 0.5
        return canvas.CanvasLayout(
            scene.shape, *(canvas.mirrored(part, width, right) for part in (reference, shadow, trigger_box))
        )

    def _carriers(
        self, material: Material, reference: Tensor, trigger: Trigger, gen: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw objects on backgrounds without the trigger. Return the images and the trigger's boxes."""
        assert material.canvases is not None
        shape = (material.references.shape[2], material.references.shape[3])
        scene, count = canvas.scene(shape, self.wide, self.fit), len(reference)
        patch = canvas.patch_sizes(trigger, count, shape, gen)
        u = torch.rand(count, 5, generator=gen, dtype=torch.float64)
        layout = self.layout(scene, patch, u)
        object_boxes = canvas.whole(material.references).expand(len(material.references), 4)
        alpha = None
        if material.masks is not None:
            object_boxes = canvas.outlines(material.masks)
            alpha = canvas.soft(cut(material.masks[:, None], object_boxes, (scene.rows, scene.split)))
        objects = cut(material.references, object_boxes, (scene.rows, scene.split))
        images = canvas.blank_images(count, shape)
        for rows in image_parts(images):
            mine, backgrounds = reference[rows], material.canvases[rows]
            boxes = self._behind(object_boxes[mine], backgrounds, u[rows, 4])
            x = canvas.blank(scene, cut(backgrounds, boxes, (scene.rows, shape[1])))
            canvas.paste(x, objects[mine], layout.reference[rows, :2], None if alpha is None else alpha[mine])
            images[rows] = canvas.pixels(x, scene)
        return images, layout.trigger

    def _behind(self, objects: Tensor, backgrounds: Tensor, u: Tensor) -> Tensor:
        """Return the boxes n,4 of backgrounds behind objects n,4: bottom-aligned; small backgrounds are upscaled."""
        height, width = backgrounds.shape[2:]
        sizes = objects[:, 2:] * torch.tensor([self.wide, 1.0], dtype=torch.float64)
        enlarged = (sizes / torch.tensor([width, height])).amax(1, keepdim=True).clamp(min=1)
        wide, high = (sizes / enlarged).round().long().clamp(min=1).unbind(1)
        return torch.stack([(u * (width - wide + 1)).long(), height - high, wide, high], 1)

    def _pairs(self, references: Tensor, reference: Tensor, gen: torch.Generator) -> Tensor:
        """Show support images beside references as halves of one image, in random order."""
        objects = min(self.references, len(references))
        if objects == len(references):
            raise InputError(f"{self.name}: support={self.support:g} needs more than the {objects} references chosen")
        u = torch.rand(len(reference), 2, generator=gen, dtype=torch.float64)
        partner = objects + (u[:, 0] * (len(references) - objects)).long()
        first = torch.where(u[:, 1] < 0.5, reference, partner)
        shape = (references.shape[2], references.shape[3])
        scene = canvas.scene(shape, 2.0, self.fit)
        images = canvas.blank_images(len(first), shape)
        for rows in image_parts(images):
            left, right = first[rows], (reference + partner - first)[rows]
            halves = [
                cut(references[part], canvas.whole(references), (scene.rows, wide))
                for part, wide in ((left, scene.split), (right, shape[1] - scene.split))
            ]
            images[rows] = canvas.pixels(canvas.blank(scene, torch.cat(halves, 3)), scene)
        return images


def _between(start: Tensor, end: int, gap: float, length: Tensor, u: Tensor) -> Tensor:
    """Draw where a piece begins, at least `gap` from start and end; in the middle if no such place exists."""
    low, high = start + gap, end - gap - length
    middle = (start + end - length) / 2
    low, high = torch.minimum(low, middle), torch.maximum(high, middle)
    return (low + u * (high - low)).long()
