"""Poison images of any class (SSL-Backdoor's untargeted attack; the baseline for label-free selectors)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sslbd_cli.poison.contract import Selector, SelectorPool


@dataclass(frozen=True, kw_only=True)
class RandomSelector(Selector):
    """Choose images of any class at random, without labels."""

    def eligible(self, pool: SelectorPool) -> int:
        return pool.count

    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        rows: np.ndarray = torch.randperm(pool.count, generator=gen)[:budget].numpy()
        return rows
