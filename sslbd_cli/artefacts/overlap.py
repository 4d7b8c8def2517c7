"""Find images that two datasets share, so that no image is judged that set a threshold or trained a head."""

from __future__ import annotations

import hashlib

import numpy as np

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.kinds import Dataset


def shared_images(one: Dataset, other: Dataset) -> int:
    """Count the images of `one` that are also in `other`, pixel for pixel."""
    return known_images(one, image_digests(other))


def known_images(dataset: Dataset, digests: np.ndarray) -> int:
    """Count the images of a dataset whose digests (see `image_digests`) are among these."""
    return int(np.isin(image_digests(dataset), digests).sum())


def distinct_images(dataset: Dataset) -> int:
    """Count the images of a dataset that differ from one another."""
    return len(np.unique(image_digests(dataset)))


def image_digests(dataset: Dataset) -> np.ndarray:
    """Return the first 8 bytes of each image's SHA-256, little endian: uint64 N."""
    parts = (dataset.images[part] for part in paging.parts(dataset.images))
    digests = (hashlib.sha256(image.tobytes()).digest()[:8] for part in parts for image in part)
    return np.frombuffer(b"".join(digests), "<u8")
