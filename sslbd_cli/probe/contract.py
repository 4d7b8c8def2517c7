"""What a head is given and what it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sslbd_cli.core.features import Labelled
from sslbd_cli.plugin import Plugin


@dataclass(frozen=True, kw_only=True)
class Head(Plugin):
    """Base of `probe --head`: a classifier on frozen features."""

    shelf: ClassVar[str] = "head"
    takes_texts: ClassVar[bool] = False  # whether it is fitted on features of texts, not of labelled images

    def augmented(self) -> int:
        """Return how many augmented views of each image the head wants beside the plain one; by default none."""
        return 0

    @abstractmethod
    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        """Fit on `train`, choosing hyper-parameters on `valid` alone; on all rows where there is nothing to choose."""


@dataclass(frozen=True)
class Classifier:
    """A fitted head: features N,D to predicted classes int64 N, and the hyper-parameters that were chosen."""

    predict: Callable[[Tensor], Tensor]
    chosen: dict[str, float | int | str]
