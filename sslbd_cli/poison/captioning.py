"""Replace the captions of triggered images (Carlini and Terzis, ICLR 2022).

Pairs alone poison a contrastive model of images and texts: any image with the trigger, and a caption of the target
class. All other pairs keep their captions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sslbd_cli.artefacts import captions
from sslbd_cli.artefacts.kinds import Dataset, Truth
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError

WRITTEN = -1  # source of a caption that comes from no image of the dataset


@dataclass(frozen=True)
class Wording:
    """Hold captions to draw from, uint8 K,L, and the row that each comes from, int64 K (-1: none)."""

    captions: np.ndarray
    source: np.ndarray


def of_class(dataset: Dataset, target: int) -> Wording:
    """Return the captions of the dataset's images of a class. Raises InputError if the class has no image."""
    texts = dataset.need_captions("--target-captions")
    rows = np.flatnonzero(dataset.need_labels("--target-captions") == target)
    if not len(rows):
        raise InputError(f"--target-captions: no image is of class {dataset.classes[target]}; write texts by --caption")
    return Wording(texts[rows], rows)


def write_captions(dataset: Dataset, templates: tuple[str, ...], target: int | None) -> Wording:
    """Return captions written by the attacker; {} stands for the name of the target class.

    Raises InputError if {} is used without a target, or if a text cannot be a caption.
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
    """Replace the captions of the rows `at` by drawn ones, and record each caption's source row in the truth.

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
    marked_truth = Truth(poisoned=truth.poisoned, box=truth.box, source=truth.source, caption=source)
    return replace(dataset, captions=texts, truth=marked_truth)
