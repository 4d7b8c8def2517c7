"""The contract of a trigger: how it changes pixels, and where."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core.device import generator
from sslbd_cli.core.loader import image_parts
from sslbd_cli.plugin import Plugin
from sslbd_cli.triggers._resident import resident

Phase = Literal["train", "test"]


@dataclass(frozen=True)
class Stamped:
    """Hold triggered images B,C,H,W, with the input's dtype, and each image's box int64 B,4: x, y, width, height."""

    images: Tensor
    boxes: Tensor


@dataclass(frozen=True, kw_only=True)
class Trigger(Plugin):
    """Base of --trigger: a change of pixels in [0,1], made before normalisation."""

    shelf: ClassVar[str] = "trigger"

    @final
    def __call__(
        self, images: Tensor, gen: torch.Generator, phase: Phase = "test", boxes: Tensor | None = None
    ) -> Stamped:
        """Stamp a batch of images, uint8 or float in [0,1]. The result for uint8 is the rounded result for float.

        `gen` is a CPU generator. Place and strength may differ between training images (`train`) and test images
        (`test`). `boxes` replaces the places that `place` would draw; it must have the sizes that `place` gives.
        Raises InputError if the trigger does not fit the images.
        """
        count, _, height, width = images.shape
        if boxes is None:
            boxes = self.place(count, height, width, gen, phase)
        if images.dtype == torch.uint8:
            # look the levels up in a table, because CPU and CUDA round a division by 255 differently
            levels = resident(_levels, like=images, dtype=torch.float32)
            pixels = levels.index_select(0, images.flatten().int()).view(images.shape)
            stamped = self.stamp(pixels, boxes, gen, phase).mul(255).round().clamp(0, 255).to(torch.uint8)
        else:
            stamped = self.stamp(images.clone(), boxes, gen, phase).clamp(0, 1)
        return Stamped(stamped, boxes)

    @final
    def stamp_all(self, images: np.ndarray, gen: torch.Generator, phase: Phase) -> tuple[np.ndarray, Tensor]:
        """Stamp any number of images uint8 N,3,H,W, some at a time. Return the copies, and the boxes int64 N,4."""
        stamped, boxes = paging.empty(images.shape), []
        for some in image_parts(images):
            part = self(torch.from_numpy(np.array(images[some])), gen, phase)
            stamped[some] = part.images.numpy()
            boxes.append(part.boxes)
            paging.note_use(2 * part.images.nbytes)
        return stamped, torch.cat(boxes)

    @property
    def has_place(self) -> bool:
        """Whether the trigger covers a box inside the image; False if it changes the whole image."""
        return type(self).place is not Trigger.place

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        """Draw each image's box, int64 B,4 on the CPU: x, y, width, height. The default is the whole image."""
        return torch.tensor([[0, 0, width, height]]).repeat(count, 1)

    @abstractmethod
    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        """Change x, float B,C,H,W in [0,1], inside the boxes. May change x in place. All randomness comes from gen."""


def _levels() -> Tensor:
    return torch.arange(256) / 255


def triggered_images(test: Dataset, trigger: Trigger, seed: int) -> np.ndarray:
    """Return a copy of all test images with the trigger, uint8 N,3,H,W. Stamping comes before normalisation."""
    return trigger.stamp_all(test.images, generator(seed, "test trigger"), "test")[0]
