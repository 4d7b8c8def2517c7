"""The contract of selectors and crafts: what they are given and what they return."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True, kw_only=True)
class SelectorPool:
    """Hold what a selector may look at: only what it `needs`. Rows are numbered 0 ... count-1.

    labels: int64 N; target: the attacked class; classes: their number, or None if the dataset names none;
    feats: float32 N,D on the device that searches them; listed_rows: int64 rows from a file.
    """

    count: int
    target: int | None = None
    classes: int | None = None
    labels: np.ndarray | None = None
    feats: Tensor | None = None
    listed_rows: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Selector(Plugin):
    """Base of --select: choose the rows of a dataset that are poisoned."""

    shelf: ClassVar[str] = "select"
    needs: ClassVar[Literal["count", "labels", "feats", "listed_rows"]] = "count"
    limit: ClassVar[str] = ""  # why not all rows are eligible, for the error message

    @final
    def __call__(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        """Choose `budget` distinct rows, ascending.

        Raises InputError if fewer rows are eligible.
        """
        needs = self.needs
        pool = replace(
            pool,
            labels=pool.labels if needs == "labels" else None,
            feats=pool.feats if needs == "feats" else None,
            listed_rows=pool.listed_rows if needs == "listed_rows" else None,
        )
        eligible = self.eligible(pool)
        if not 0 < budget <= eligible:
            why = f" ({self.limit})" if self.limit and eligible < pool.count else ""
            raise InputError(
                f"{budget} images to poison, but {eligible} are eligible{why}; lower the rate or the count"
            )
        rows = np.sort(self.select(pool, budget, gen))
        if len(np.unique(rows)) != budget:
            raise RuntimeError(f"{self.name} chose {len(np.unique(rows))} rows instead of {budget}")
        return rows

    @abstractmethod
    def eligible(self, pool: SelectorPool) -> int:
        """Count the rows that may be chosen."""

    @abstractmethod
    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        """Return `budget` distinct row numbers."""


@dataclass(frozen=True)
class Material:
    """Hold what poisons are crafted from. references: uint8 R,3,H,W images of the target class.

    masks: uint8 R,H,W, how much of each pixel is the object (255: all), or None if the whole image is the object.
    canvases: uint8 P,3,H',W' other images (backgrounds or shadow images), one per poison, or None if not needed.
    """

    references: Tensor
    masks: Tensor | None = None
    canvases: Tensor | None = None


@dataclass(frozen=True)
class Crafted:
    """Hold poisons uint8 P,3,H,W, the trigger's box in each, int64 P,4, and the reference of each, int64 P.

    The box of a poison without a trigger is all zeros.
    """

    images: Tensor
    boxes: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class Craft(Plugin):
    """Base of `poison --craft`: make poisons from reference images of the target class and a trigger."""

    shelf: ClassVar[str] = "craft"
    canvases: ClassVar[bool] = False  # whether it needs images besides the references
    masks: ClassVar[bool] = False  # whether it can use masks of the references

    @abstractmethod
    def reference_count(self, count: int) -> int:
        """Return how many reference images `count` poisons are made from."""

    def settle(self, shape: tuple[int, int], trigger: Trigger) -> tuple[Craft, str]:
        """Plan the keys that are left open, for images H,W. Return the craft to use and a message for the user.

        The default plans nothing.
        """
        return self, ""

    @abstractmethod
    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        """Make `count` poisons of the references' size. `gen` is a CPU generator. The material must not be changed.

        Raises InputError if the trigger does not fit.
        """
