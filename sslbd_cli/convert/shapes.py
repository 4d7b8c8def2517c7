"""Read numbers off the shapes and names of a state dict under our names."""

from __future__ import annotations

import math
import re

from sslbd_cli.convert.statedict import State, shape
from sslbd_cli.errors import InputError

#: Width -> heads, for models whose attention heads are not 64 channels wide: OpenCLIP's ViT-H, ViT-g and ViT-bigG.
WIDE = {1280: 16, 1408: 16, 1664: 16}


def dims_of(inner: State, name: str, count: int) -> tuple[int, ...]:
    """Return a tensor's shape. It must have `count` dimensions, each at least 1."""
    if name not in inner:
        raise InputError(f"has no tensor for our '{name}'; is --from right?")
    dims = tuple(inner[name].shape)
    if len(dims) != count or min(dims) < 1:
        raise InputError(f"its {name} is {shape(inner[name])}, expected {count} dimensions")
    return dims


def count_of(inner: State, pattern: str) -> int:
    """Return 1 + the highest number at the place of # in names like `pattern`."""
    compiled = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,4})"))
    return 1 + max((int(match[1]) for match in map(compiled.fullmatch, inner) if match), default=-1)


def side_of(tokens: int) -> int:
    """Return the side of the square of patches that makes this many tokens together with one class token."""
    side = math.isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1 or side < 1:
        raise InputError(
            f"has positions for {tokens} tokens, which no square of patches and one class token makes; is --from right?"
        )
    return side
