"""Test whether an imported encoder works, and which of several readings of it embeds best."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.convert.statedict import shape
from sslbd_cli.core import device, features, metrics, nets, similarity
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

MOST = 2000  # labelled images to compare readings on: enough to see 3 points; takes seconds for a small encoder
NEIGHBOURS = 20
LEVEL = 0.05
CONSTANT = 0.99999  # mean cosine of useless features; a sound encoder's features can have 0.999


@torch.no_grad()
def self_test(net: nets.ImageEncoder, count: int | None = None, least: float = 0.1) -> tuple[float, float]:
    """Return the share of feature dimensions that differ between random images, and the features' mean cosine.

    There are 64 small images, or 16 of more than 128 pixels, which a large network takes a second each for.

    Raises InputError if features are not finite, if hardly any dimension differs, if all features point the same way,
    or if an image's features depend on its batch. A sound encoder may have many dead dimensions: after a ReLU, a
    dimension that no image excites is always zero.
    """
    batches = list(random_images(count or (64 if net.size <= 128 else 16), net.size))
    try:
        feats = torch.cat([net(images) for images in batches])  # count,D
        alone = net(batches[0][:1])
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise InputError(f"{net.arch} cannot embed {net.size}x{net.size} images: {reason(error)}") from None
    if feats.ndim != 2:
        raise InputError(f"{net.arch} gives features of shape {shape(feats)}, expected one vector per image")
    if not bool(torch.isfinite(feats).all()):
        raise InputError("its features on random images are not finite; the weights are damaged")
    scale = float(feats.abs().max())
    alive = float((feats.std(0) > 1e-6 * scale).float().mean())
    if alive <= least:
        raise InputError(f"only {alive:.0%} of its features differ between random images; this is no working encoder")
    if float((alone - feats[:1]).abs().max()) > 1e-3 * scale:
        raise InputError("its features of an image change with the batch around it; this is no working encoder")
    cosine = float(similarity.pair_cosine(F.normalize(feats, dim=1)))
    if cosine >= CONSTANT:
        raise InputError(
            f"its features of random images have a mean cosine of {cosine:.5f}: they are nearly constant; "
            "give another checkpoint"
        )
    return alive, cosine


def random_images(count: int, size: int) -> Iterator[Tensor]:
    """Yield batches of uint8 images with structure at every scale, like photographs and unlike white noise."""
    gen = device.generator(0, "convert", "self-test")
    batch = max(1, min(count, 8 * 224**2 // size**2))  # few large or many small images, to bound memory
    for start in range(0, count, batch):
        images = torch.zeros(min(batch, count - start), 3, size, size)
        for cells in (1, 2, 4, 8, 16, size):
            grid = torch.rand(len(images), 3, cells, cells, generator=gen) - 0.5
            images += F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
        yield images.mul(120).add(128).clamp(0, 255).to(torch.uint8)


def compare(readings: list[tuple[str, nets.ImageEncoder]], data: Dataset) -> tuple[int, list[str]]:
    """Return the number of the reading that classifies labelled images best, and one line on each reading.

    Each image is classified by its nearest neighbours among the others. The best reading must beat each other one
    beyond chance: McNemar's exact test on the images that the two disagree about, at 5 % over all comparisons. Raises
    InputError if it does not.
    """
    labels = torch.from_numpy(data.need_labels("--data"))
    rows = torch.randperm(len(labels), generator=device.generator(0, "convert", "compare"))[:MOST].sort().values
    if len(rows) < 2:
        raise InputError("one image has no neighbours; give --data with more images")
    right = np.stack([_right(net, data.images[rows.numpy()], labels[rows]) for _, net in readings])  # R,N
    best = int(right.sum(1).argmax())
    lines, doubtful = [], []
    for number, (name, _) in enumerate(readings):
        wins, losses = int((right[best] & ~right[number]).sum()), int((right[number] & ~right[best]).sum())
        p = metrics.binomial_tail(wins, wins + losses, 0.5)
        beaten = p < LEVEL / (len(readings) - 1)
        doubtful += [name] if number != best and not beaten else []
        note = "best" if number == best else f"p {p:.2g} against the best"
        lines.append(f"kNN accuracy {right[number].mean():.1%} on {len(rows)} images as {name} ({note})")
    if doubtful:
        raise InputError(f"its readings do not differ beyond chance: {'; '.join(lines)}; choose one by options")
    return best, lines


def _right(net: nets.ImageEncoder, images: np.ndarray, labels: Tensor) -> np.ndarray:
    """Return bool N: which images their nearest neighbours (without themselves) classify correctly."""

    def fit(chunk: Tensor) -> Tensor:
        if chunk.shape[-1] == chunk.shape[-2] == net.size:
            return chunk
        pixels = F.interpolate(chunk.float(), size=(net.size, net.size), mode="bicubic", antialias=True)
        return pixels.round().clamp(0, 255).to(torch.uint8)

    session = Session(device.Device(torch.device("cpu"), "fp32"))
    feats = F.normalize(features.embed(net, images, session, fit, batch=64), dim=1)
    count = min(NEIGHBOURS, len(feats) - 1)
    near, rows = similarity.nearest_rows(feats, feats, count, len(feats), others=True)
    answers: np.ndarray = (features.vote(near, labels[rows], int(labels.max()) + 1, 0.1) == labels).numpy()
    return answers
