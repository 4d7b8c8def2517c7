"""Plant a trigger in a dataset: choose rows, stamp them, record the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from sslbd_cli.core.artefact import Dataset, Truth
from sslbd_cli.core.bases import Phase, Selector, Trigger
from sslbd_cli.core.device import generator
from sslbd_cli.core.errors import InputError

CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much to poison: exactly one of a share of the dataset, a share of the target class, a count."""

    rate: float | None = None
    class_rate: float | None = None
    count: int | None = None

    def images(self, total: int, in_class: int | None) -> int:
        """Return the number of images. Raises InputError where it comes to none."""
        if self.count is not None:
            return self.count
        if self.class_rate is not None:
            if in_class is None:
                raise InputError("--class-rate needs labels and --target")
            wanted = round(self.class_rate * in_class)
        else:
            assert self.rate is not None
            wanted = round(self.rate * total)
        if wanted < 1:
            raise InputError(f"the rate comes to no image at all of {total}; raise it or give --count")
        return wanted


def plant(
    dataset: Dataset,
    trigger: Trigger,
    rows: np.ndarray,
    mode: Literal["replace", "append"],
    seed: int,
    phase: Phase = "train",
) -> Dataset:
    """Stamp the rows of a dataset, in place of the clean images or behind them.

    Appended poisons are shuffled in, so that order does not give them away. Truth records which rows, where and from
    which row of the input; an earlier truth is kept (a twice-poisoned dataset knows both).
    """
    count = len(dataset.images)
    earlier = dataset.truth
    source = np.arange(count)
    order = source
    if mode == "append":
        order = np.concatenate([source, rows])
        order = order[torch.randperm(len(order), generator=generator(seed, "append")).numpy()]
    result = dataset.take(order)
    stamped_at = _stamped_positions(order, rows, mode, count, seed)
    images = np.array(result.images)
    boxes = np.zeros((len(order), 4), np.int32)
    poisoned = np.zeros(len(order), bool)
    if earlier is not None:
        boxes, poisoned = np.array(earlier.box[order]), np.array(earlier.poisoned[order])
    gen = generator(seed, "trigger")
    for start in range(0, len(stamped_at), CHUNK):
        at = stamped_at[start : start + CHUNK]
        stamped = trigger(torch.from_numpy(images[at]), gen, phase)
        images[at], boxes[at] = stamped.images.numpy(), stamped.boxes.int().numpy()
    poisoned[stamped_at] = True
    return replace(result, images=images, truth=Truth(poisoned=poisoned, box=boxes, source=order))


def _stamped_positions(order: np.ndarray, rows: np.ndarray, mode: str, count: int, seed: int) -> np.ndarray:
    if mode == "replace":
        return rows
    shuffled = torch.randperm(len(order), generator=generator(seed, "append")).numpy()
    positions: np.ndarray = np.flatnonzero(shuffled >= count)
    return positions


def choose(dataset: Dataset, selector: Selector, target: int | None, budget: Budget, seed: int) -> np.ndarray:
    """Choose the rows to poison, ascending. Raises InputError where the budget cannot be met."""
    in_class = None
    if dataset.labels is not None and target is not None:
        in_class = int((dataset.labels == target).sum())
    pool = (
        dataset.need_labels(f"--select {selector.name}")
        if selector.needs == "labels"
        else np.arange(len(dataset.images))
    )
    return selector(pool, target, budget.images(len(dataset.images), in_class), generator(seed, "select"))
