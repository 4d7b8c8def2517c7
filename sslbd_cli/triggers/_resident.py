"""Patterns of triggers, made once and kept on the images' device, so that stamping never waits for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


def resident(make: Callable[..., Tensor], *args: Hashable, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return make(*args) on the device of `like`, with its dtype or the one given. The result must not be changed.

    The last results are kept, so `make` must return the same for the same arguments.
    """
    return _made(make, args, like.device, dtype or like.dtype)


@functools.lru_cache(maxsize=32)
def _made(make: Callable[..., Tensor], args: tuple[Hashable, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be used elsewhere
        return make(*args).to(device, dtype)
