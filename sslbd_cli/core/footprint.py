"""Measure how much memory one image takes on its way through a network."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TRIAL = 2  # images of the trial batch: kernels for a single image differ from those for several


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors that live at the same time, on any device. `peak` is the largest count.

    Tensors from before do not count, so neither do the weights of a network. What the kernels allocate for themselves
    is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def bytes_per_image(network: nn.Module, pixels: Tensor, *, gradients: bool) -> int:
    """Return the bytes that each image of a trial batch takes in a network in eval mode.

    pixels: float32 or uint8 B,3,H,W on the network's device. gradients: with respect to the images; otherwise none are
    kept. The network and its gradients stay as they are.
    """
    was_training, meter = network.training, LiveBytes()
    network.eval()
    try:
        with torch.inference_mode(mode=not gradients), torch.set_grad_enabled(gradients), meter:
            batch = pixels.clone()
            out = network(batch.requires_grad_() if gradients else batch)
            if gradients:
                torch.autograd.grad(out.float().square().sum(), batch)
    finally:
        network.train(was_training)
    return -(-meter.peak // len(pixels))
