"""Images that two datasets share, pixel for pixel: what set a threshold or taught a head is not judged by it."""

from __future__ import annotations

import hashlib

import numpy as np

from sslbd_cli.artefacts.kinds import Dataset


def shared_images(one: Dataset, other: Dataset) -> int:
    """Count the images of `one` that `other` holds too, pixel for pixel."""
    return known_images(one, image_digests(other))


def known_images(dataset: Dataset, digests: np.ndarray) -> int:
    """Count the images of a dataset that are among those of `image_digests`."""
    return int(np.isin(image_digests(dataset), digests).sum())


def image_digests(dataset: Dataset) -> np.ndarray:
    """Return the first 8 bytes of each image's SHA-256, little endian: uint64 N."""
    digests = (hashlib.sha256(image.tobytes()).digest()[:8] for image in dataset.images)
    return np.frombuffer(b"".join(digests), "<u8")
