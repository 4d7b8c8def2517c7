"""Poison the images listed in a file: the choice of another tool or of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from sslbd_cli.poison.contract import Selector, SelectorPool


@dataclass(frozen=True, kw_only=True)
class Indices(Selector):
    """Choose the rows listed in --indices, one number per line: all of them, or the first ones."""

    needs: ClassVar[Literal["count", "labels", "feats", "listed_rows"]] = "listed_rows"

    def eligible(self, pool: SelectorPool) -> int:
        assert pool.listed_rows is not None
        return len(pool.listed_rows)

    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        assert pool.listed_rows is not None
        return pool.listed_rows[:budget]
