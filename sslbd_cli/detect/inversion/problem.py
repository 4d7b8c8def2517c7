"""Gradients of candidate triggers on one batch of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.detect.gradients import Room, embed_for_gradients

#: (feats K,B,D of triggered images, numbers of the candidates int64 K, rows of the images int64 B on the CPU) -> loss K
#: and measure K of the candidates. A candidate succeeds if its measure exceeds the bar.
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Space(Protocol):
    """K candidate triggers made of free parameters, each K,... on the device."""

    parameters: list[Tensor]

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keep k,1,H,W, add k,3,H,W and size k of some candidates; images x become clip(keep x + add)."""


@dataclass(frozen=True)
class InversionProblem:
    """The candidates, their objective, and the encoder that embeds the images of the pool with the triggers."""

    net: ImageEncoder
    pool: Pool
    space: Space
    objective: Objective
    room: Room

    def step(
        self, weight: Tensor, which: Tensor, rows: Tensor, tick: Callable[[int], None]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Add up the gradients of one batch. Returns the state of the candidates, and their measures, detached.

        Candidates go through the encoder in groups, which do not change the gradients. tick: is told of each group how
        many stamped images it had.
        """
        images = self.pool.batch(rows).float()[None] / 255  # 1,B,3,H,W
        keep, add, size = self.space.make(which)
        changes = [part.detach().requires_grad_() for part in (keep, add)]
        measures = []
        group = max(1, self.room.chunk // len(rows))
        for start in range(0, len(which), group):
            some, part = which[start : start + group], slice(start, start + group)
            stamped_images = (images * changes[0][part, None] + changes[1][part, None]).clamp(0, 1)  # k,B,3,H,W
            with self.pool.device.autocast():
                feats = embed_for_gradients(self.net, stamped_images.flatten(0, 1), self.room)
            loss, measure = self.objective(feats.view(len(some), len(rows), -1), some, rows)
            torch.autograd.backward(loss.sum())
            measures.append(measure.detach())
            tick(len(some) * len(rows))
        # not every part of a trigger is free; the sum of all of them has a gradient
        pulls = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in changes]
        torch.autograd.backward((keep * pulls[0]).sum() + (add * pulls[1]).sum() + (weight[which] * size).sum())
        return (keep.detach(), add.detach(), size.detach()), torch.cat(measures)
