"""Poison images of the target class (SSL-Backdoor's targeted attack)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from sslbd_cli.core.bases import Selector
from sslbd_cli.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Label(Selector):
    """Choose images of the target class at random (SSL-Backdoor, section 3)."""

    needs: ClassVar[Literal["count", "labels", "feats"]] = "labels"

    def eligible(self, pool: np.ndarray, target: int | None) -> int:
        if target is None:
            raise InputError("--select label needs --target: the class whose images are poisoned")
        return int((pool == target).sum())

    def select(self, pool: np.ndarray, target: int | None, budget: int, gen: torch.Generator) -> np.ndarray:
        rows = np.flatnonzero(pool == target)
        chosen: np.ndarray = rows[torch.randperm(len(rows), generator=gen)[:budget].numpy()]
        return chosen
