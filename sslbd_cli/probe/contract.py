"""The contract of heads: what they are given and what they return."""

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
    takes_texts: ClassVar[bool] = False  # whether it is fitted on features of texts instead of labelled images

    def augmented(self) -> int:
        """Return how many augmented views of each image the head needs besides the plain one. Default: none."""
        return 0

    @abstractmethod
    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        """Fit on `train`; choose hyper-parameters on `valid` only. If there are none to choose, fit on all rows."""


@dataclass(frozen=True)
class Classifier:
    """A fitted head: from features N,D to predicted classes int64 N, and the chosen hyper-parameters."""

    predict: Callable[[Tensor], Tensor]
    chosen: dict[str, float | int | str]
