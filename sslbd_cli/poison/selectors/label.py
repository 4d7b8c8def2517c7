"""Poison images of the target class (SSL-Backdoor's targeted attack)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Selector, SelectorPool


@dataclass(frozen=True, kw_only=True)
class Label(Selector):
    """Choose images of the target class at random (SSL-Backdoor, section 3)."""

    needs: ClassVar[Literal["count", "labels", "feats", "listed_rows"]] = "labels"

    def eligible(self, pool: SelectorPool) -> int:
        return len(self._rows(pool))

    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        rows = self._rows(pool)
        row_numbers: np.ndarray = rows[torch.randperm(len(rows), generator=gen)[:budget].numpy()]
        return row_numbers

    def _rows(self, pool: SelectorPool) -> np.ndarray:
        if pool.target is None:
            raise InputError("--select label needs --target: the class whose images are poisoned")
        return np.flatnonzero(pool.labels == pool.target)
