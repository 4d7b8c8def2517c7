"""Micro artefacts made in memory, so small that a test trains on them in a second."""

import contextlib

import numpy as np
import torch

from sslbd_cli.artefacts.kinds import Dataset, Encoder
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator


def make_dataset(count: int = 60, size: int = 16, classes: int = 3, seed: int = 0) -> Dataset:
    """Make noise around one pattern per class, which any head can classify. The labels run 0, 1, 2, 0, 1, 2, ..."""
    pattern = np.random.default_rng(99).integers(40, 216, (classes, 3, size, size))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    noisy = pattern[labels] + rng.integers(-30, 31, (count, 3, size, size))
    names = tuple(f"class-{number}" for number in range(classes))
    return Dataset(images=noisy.clip(0, 255).astype(np.uint8), labels=labels, ids=np.arange(count), classes=names)


def make_encoder(size: int = 16, seed: int = 0, arch: nets.Arch | None = None) -> Encoder:
    """Make an encoder with random weights."""
    arch = arch or nets.Tiny(width=8)
    return nets.save(nets.new(arch, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), generator(seed, "test weights")))


class Interrupted:
    """A watch that interrupts a training when it tells of epoch `at`, before its state is stored."""

    def __init__(self, at: int) -> None:
        self.left = at

    @contextlib.contextmanager
    def __call__(self, total, unit, label):
        yield self

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy all weights and buffers of a network."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_changed_in_boxes(before: torch.Tensor, after: torch.Tensor, boxes: torch.Tensor) -> None:
    """Assert that each image of N,3,H,W was changed, and only inside its box of N,4 (x, y, width, height)."""
    rows, columns = before.shape[2:]
    for old, new, (x, y, width, height) in zip(before, after, boxes.tolist(), strict=True):
        assert 0 <= x < x + width <= columns and 0 <= y < y + height <= rows
        assert not torch.equal(old, new)
        restored = new.clone()
        restored[:, y : y + height, x : x + width] = old[:, y : y + height, x : x + width]
        assert torch.equal(restored, old)
