"""What a selector and a craft are given and what they return."""

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
    """What a selector may look at; only what it `needs` is there. rows are numbers 0 ... count-1.

    labels: int64 N; target: the attacked class; classes: how many there are, or None where the dataset names none;
    feats: float32 N,D on the device that searches them; listed: int64, rows given in a file.
    """

    count: int
    target: int | None = None
    classes: int | None = None
    labels: np.ndarray | None = None
    feats: Tensor | None = None
    listed: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Selector(Plugin):
    """Base of --select: which rows of a dataset are poisoned."""

    shelf: ClassVar[str] = "select"
    needs: ClassVar[Literal["count", "labels", "feats", "listed"]] = "count"
    limit: ClassVar[str] = ""  # why fewer rows are eligible than there are, where that needs saying

    @final
    def __call__(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        """Choose `budget` distinct rows, ascending.

        Raises InputError where fewer rows are eligible than the budget asks for.
        """
        needs = self.needs
        pool = replace(
            pool,
            labels=pool.labels if needs == "labels" else None,
            feats=pool.feats if needs == "feats" else None,
            listed=pool.listed if needs == "listed" else None,
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
    """What poisons are crafted from. references: uint8 R,3,H,W images of the target class.

    masks: uint8 R,H,W, how much of each pixel is the object (255: all), or None where whole images are the objects;
    canvases: uint8 P,3,H',W' other images (backgrounds, shadow images), one per poison; none for crafts without them.
    """

    references: Tensor
    masks: Tensor | None = None
    canvases: Tensor | None = None


@dataclass(frozen=True)
class Crafted:
    """Poisons uint8 P,3,H,W, the trigger's box in each, int64 P,4, and which reference each came from, int64 P.

    The box of a poison that carries no trigger is all zeros.
    """

    images: Tensor
    boxes: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class Craft(Plugin):
    """Base of `poison --craft`: how a poison is made of reference images of the target class and a trigger."""

    shelf: ClassVar[str] = "craft"
    canvases: ClassVar[bool] = False  # whether other images than the references are needed
    masks: ClassVar[bool] = False  # whether masks of the references are of use

    @abstractmethod
    def reference_count(self, count: int) -> int:
        """Return from how many reference images `count` poisons are made."""

    def settled(self, shape: tuple[int, int], trigger: Trigger) -> tuple[Craft, str]:
        """Decide what the keys leave to a plan, for images of shape H,W: the craft to use, and what to tell the user.

        The default leaves nothing to decide.
        """
        return self, ""

    @abstractmethod
    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        """Make `count` poisons of the references' own size. `gen` is a CPU generator; the material is left as it is.

        Raises InputError where the trigger does not fit.
        """
