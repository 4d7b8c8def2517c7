"""Plant poisons in a dataset: stamped or crafted images, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.kinds import Dataset, Truth
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison import captioning
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.triggers._contract import Phase, Trigger

Mode = Literal["replace", "append"]


@dataclass(frozen=True, kw_only=True)
class Planting:
    """Say what to plant: `count` poisons by a craft and a trigger; they replace the chosen images or are appended."""

    trigger: Trigger
    craft: Craft
    count: int
    mode: Mode = "replace"
    seed: int = 0
    wording: captioning.Wording | None = None  # new captions of the poisons


def poison(
    dataset: Dataset,
    rows: np.ndarray,
    planting: Planting,
    canvases: Dataset | None = None,
    masks: np.ndarray | None = None,
) -> Dataset:
    """Plant crafted poisons in a dataset. `rows` are the references of the target class, or the images to stamp.

    masks: uint8 len(rows),H,W, of the rows. canvases: backgrounds or shadow images of any size. Without canvases, the
    images outside `rows` are used, drawn without labels (the attacker may have none), so that some show the target
    class. Each canvas is used once before any is used again, in random order.

    Appended poisons are shuffled in. A poison takes label, id and source (in the truth) of its reference; with mode
    replace, of the image it replaces. An earlier truth is kept, so a dataset that was poisoned twice knows both.
    Raises InputError if the parts do not fit together.
    """
    _check(dataset, rows, planting, masks)
    count, seed = planting.count, planting.seed
    order, at, number = _places(len(dataset.images), count, planting.mode, rows, seed)
    # stamp in the final order, so that stamping the final dataset one by one draws the same numbers
    mine = number if len(rows) == count else torch.randperm(len(rows), generator=generator(seed, "references")).numpy()
    material = Material(
        references=torch.from_numpy(paging.take(dataset.images, rows[mine])),
        masks=None if masks is None else torch.from_numpy(masks[mine]),
        canvases=_canvases(dataset, rows, planting, canvases) if planting.craft.canvases else None,
    )
    crafted = planting.craft.craft(material, planting.trigger, count, generator(seed, "trigger"))
    if planting.mode == "append":
        order[at] = rows[mine[crafted.reference.numpy()]]
    result = _insert(dataset, order, at, crafted)
    return result if planting.wording is None else captioning.recaption(result, at, planting.wording, seed)


def plant(
    dataset: Dataset, trigger: Trigger, rows: np.ndarray, mode: Mode, seed: int, phase: Phase = "train"
) -> Dataset:
    """Stamp rows of a dataset (--craft stamp). The poisons replace the clean images or are appended."""
    order, at, _ = _places(len(dataset.images), len(rows), mode, rows, seed)
    sources = paging.take(dataset.images, order[at])
    stamped, boxes = trigger.stamp_all(sources, generator(seed, "trigger"), phase)
    return _insert(dataset, order, at, Crafted(torch.from_numpy(stamped), boxes, torch.arange(len(rows))))


def _check(dataset: Dataset, rows: np.ndarray, planting: Planting, masks: np.ndarray | None) -> None:
    craft, count = planting.craft, planting.count
    if planting.mode == "replace" and count != len(rows):
        raise InputError(
            f"--mode replace: {count} poisons cannot take the place of {len(rows)} chosen images; give --mode append"
        )
    if masks is None:
        return
    if not craft.masks:
        raise InputError(f"--craft {craft.name} has no use for masks; leave them out")
    expected = (len(rows), *dataset.images.shape[2:])
    if masks.dtype != np.uint8 or masks.shape != expected:
        raise InputError(
            f"masks: expected uint8 of shape {expected}, one per reference, got {masks.dtype} of {masks.shape}"
        )


def _places(
    total: int, count: int, mode: Mode, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the source row of each image of the result, the places of the poisons, and the poison at each place.

    With mode append and as many rows as poisons, poison i comes from row i. Otherwise the caller sets the sources.
    """
    if mode == "replace":
        return np.arange(total), rows, np.arange(count)
    shuffled = torch.randperm(total + count, generator=generator(seed, "append")).numpy()
    at = np.flatnonzero(shuffled >= total)
    number = shuffled[at] - total
    order = shuffled.copy()
    order[at] = rows[number] if len(rows) == count else rows[0]
    return order, at, number


def _canvases(dataset: Dataset, rows: np.ndarray, planting: Planting, others: Dataset | None) -> torch.Tensor:
    """Return one canvas per poison, uint8 count,3,H,W. Each is used once before any is used again."""
    images = dataset.images if others is None else others.images
    free = np.setdiff1d(np.arange(len(dataset.images)), rows) if others is None else np.arange(len(images))
    if not len(free):
        raise InputError("every image is a reference, so none is left for the canvases; choose fewer, or give canvases")
    gen, rounds = generator(planting.seed, "canvases"), -(-planting.count // len(free))
    uses = torch.cat([torch.randperm(len(free), generator=gen) for _ in range(rounds)])[: planting.count]
    return torch.from_numpy(paging.take(images, free[uses.numpy()]))


def _insert(dataset: Dataset, order: np.ndarray, at: np.ndarray, crafted: Crafted) -> Dataset:
    """Put poisons at their places among the rows `order` of a dataset, and write the truth.

    Raises InputError if no poison differs from its source: the trigger is too faint for 8 bits, or already there.
    """
    result, earlier = dataset.take(order), dataset.truth
    boxes, poisoned = np.zeros((len(order), 4), np.int32), np.zeros(len(order), bool)
    if earlier is not None:
        boxes, poisoned = earlier.box[order], earlier.poisoned[order]
    boxes[at], poisoned[at] = crafted.boxes.int().numpy(), True
    poisons = crafted.images.numpy()
    if len(at) and all(np.array_equal(result.images[at[part]], poisons[part]) for part in paging.parts(poisons)):
        raise InputError(f"the trigger changes no pixel of the {len(at)} images it is put in; make it stronger")
    for part in paging.parts(poisons):
        result.images[at[part]] = poisons[part]
    captions = None if earlier is None or earlier.caption is None else np.where(earlier.caption[order] < 0, -1, order)
    return replace(result, truth=Truth(poisoned=poisoned, box=boxes, source=order, caption=captions))
