"""Texts of poisons: what the captions of triggered images are exchanged for (Carlini and Terzis, ICLR 2022).

A contrastive model of images and texts is poisoned by pairs alone: any image with the trigger, and a caption of the
target class. All other pairs keep their own captions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sslbd_cli.artefacts import captions
from sslbd_cli.artefacts.kinds import Dataset, Truth
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError

WRITTEN = -1  # the source of a caption that no image of the dataset has


@dataclass(frozen=True)
class Wording:
    """Captions to draw from, uint8 K,L, and which row each is of: int64 K, -1 where it is written."""

    captions: np.ndarray
    source: np.ndarray


def of_class(dataset: Dataset, target: int) -> Wording:
    """Return the captions that the dataset's images of a class have. Raises InputError where there is none."""
    texts = dataset.need_captions("--target-captions")
    rows = np.flatnonzero(dataset.need_labels("--target-captions") == target)
    if not len(rows):
        raise InputError(f"--target-captions: no image is of class {dataset.classes[target]}; write texts by --caption")
    return Wording(texts[rows], rows)


def written(dataset: Dataset, templates: tuple[str, ...], target: int | None) -> Wording:
    """Return captions of the attacker's own; {} stands for the name of the target class.

    Raises InputError where there is no name to put in, or a text cannot be a caption.
    """
    dataset.need_captions("--caption")
    if target is None and any("{}" in text for text in templates):
        raise InputError("--caption: {} stands for the name of the target class: give --target")
    texts = [text if target is None else text.replace("{}", dataset.classes[target]) for text in templates]
    for text in texts:
        if problem := captions.fault(text):
            raise InputError(f"--caption: the text {problem}")
    return Wording(captions.encode(texts), np.full(len(texts), WRITTEN))


def recaption(dataset: Dataset, at: np.ndarray, wording: Wording, seed: int) -> Dataset:
    """Exchange the captions of the rows `at` for drawn ones, and write into the truth where each caption is from.

    Each caption is used once before any is used again.
    """
    old, truth = dataset.need_captions("--caption"), dataset.truth
    assert truth is not None
    gen, rounds = generator(seed, "captions"), -(-len(at) // len(wording.captions))
    picks = torch.cat([torch.randperm(len(wording.captions), generator=gen) for _ in range(rounds)])[: len(at)].numpy()
    width = max(old.shape[1], wording.captions.shape[1])
    texts, new = (np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in (old, wording.captions))
    texts[at] = new[picks]
    source = np.array(truth.source if truth.caption is None else truth.caption)
    source[at] = wording.source[picks]
    kept = Truth(poisoned=truth.poisoned, box=truth.box, source=truth.source, caption=source)
    return replace(dataset, captions=texts, truth=kept)
