"""The contracts of the shelves: a final `__call__` does checks and bookkeeping once, authors write the mathematics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from sslbd_cli.core.device import Device
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.plugin import Plugin

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.core.train import Watch

Phase = Literal["train", "test"]


@dataclass(frozen=True)
class Stamped:
    """Triggered images, type and shape as given (B,C,H,W), and each one's box int64 B,4 as x, y, width, height."""

    images: Tensor
    boxes: Tensor


@dataclass(frozen=True, kw_only=True)
class Trigger(Plugin):
    """Base of --trigger: a change of pixels in [0,1] space, before any normalisation."""

    shelf: ClassVar[str] = "trigger"

    @final
    def __call__(self, images: Tensor, gen: torch.Generator, phase: Phase = "test") -> Stamped:
        """Stamp a batch, uint8 or float in [0,1]; uint8 gives the same result after rounding.

        `gen` is a CPU generator. Placement may differ between training images (`train`) and test images (`test`).
        Raises InputError where the trigger does not fit the images.
        """
        count, _, height, width = images.shape
        boxes = self.place(count, height, width, gen, phase)
        if images.dtype == torch.uint8:
            stamped = self.stamp(images.float() / 255, boxes, gen).mul(255).round().clamp(0, 255).to(torch.uint8)
        else:
            stamped = self.stamp(images.clone(), boxes, gen).clamp(0, 1)
        return Stamped(stamped, boxes)

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        """Draw each image's box, int64 B,4 on the CPU as x, y, width, height. The default is the whole image."""
        return torch.tensor([[0, 0, width, height]]).repeat(count, 1)

    @abstractmethod
    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator) -> Tensor:
        """Change x, float B,C,H,W in [0,1], inside its boxes. x may be changed in place; draws come from gen."""


@dataclass(frozen=True, kw_only=True)
class Selector(Plugin):
    """Base of --select: which rows of a dataset are poisoned."""

    shelf: ClassVar[str] = "select"
    needs: ClassVar[Literal["count", "labels", "feats"]] = "count"

    @final
    def __call__(self, pool: np.ndarray, target: int | None, budget: int, gen: torch.Generator) -> np.ndarray:
        """Choose `budget` distinct rows, ascending. `pool` is what `needs` names: labels N, feats N,D or N rows.

        Raises InputError where fewer rows are eligible than the budget asks for.
        """
        eligible = self.eligible(pool, target)
        if not 0 < budget <= eligible:
            raise InputError(f"{budget} images to poison, but {eligible} are eligible; lower the rate or the count")
        rows = np.sort(self.select(pool, target, budget, gen))
        if len(np.unique(rows)) != budget:
            raise RuntimeError(f"{self.name} chose {len(np.unique(rows))} rows instead of {budget}")
        return rows

    @abstractmethod
    def eligible(self, pool: np.ndarray, target: int | None) -> int:
        """Count the rows that may be chosen."""

    @abstractmethod
    def select(self, pool: np.ndarray, target: int | None, budget: int, gen: torch.Generator) -> np.ndarray:
        """Return `budget` distinct row numbers."""


@dataclass(frozen=True, kw_only=True)
class Objective(Plugin):
    """Base of `pretrain --method`: heads, loss and what follows each step. Labels are never seen.

    The state lives in the learner, a module that holds `encoder` and whatever heads, targets and queues the method
    has; parameters that are not trained by gradients have requires_grad off. Two or more views per image.
    """

    shelf: ClassVar[str] = "objective"
    views: ClassVar[int] = 2

    @abstractmethod
    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        """Build the trainable module around an encoder of embedding width dim; `batch` is images per step."""

    @abstractmethod
    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        """Return the scalar loss of one batch of views, each float B,3,H,W in [0,1]."""

    def after_step(self, learner: nn.Module, progress: float) -> None:
        """Update targets and queues after the optimiser's step; progress runs from 0 to 1 over the training."""


@dataclass(frozen=True, kw_only=True)
class Attack(Plugin):
    """Base of `badencoder --method`: turn a clean encoder into a backdoored one."""

    shelf: ClassVar[str] = "attack"

    @abstractmethod
    def run(self, encoder: ImageEncoder, plot: Plot, device: Device, seed: int, watch: Watch) -> Injected:
        """Train a copy of `encoder`; the input is left untouched."""


@dataclass(frozen=True)
class Plot:
    """What the attacker holds. shadow: uint8 N,3,H,W; per trigger its reference images uint8 R,3,H,W."""

    shadow: np.ndarray
    triggers: tuple[Trigger, ...]
    references: tuple[Tensor, ...]


@dataclass(frozen=True)
class Injected:
    """A backdoored encoder, the last epoch's mean of each loss term, and the finished encoder's mean cosines."""

    encoder: ImageEncoder
    terms: dict[str, float]
    cosines: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Detector(Plugin):
    """Base of `detect --method`. Higher scores are more suspicious. Blind to truth and history by construction."""

    shelf: ClassVar[str] = "detector"
    flags: ClassVar[Literal["encoder", "inputs", "samples"]]

    @abstractmethod
    def run(self, encoder: ImageEncoder, evidence: Evidence, device: Device, seed: int, watch: Watch) -> Findings:
        """Score `evidence.images`, learning and calibrating on `evidence.aux` only. The encoder is not changed."""

    def calibration_count(self, aux: int) -> int:
        """Return on how many of `aux` images the threshold is set: all, unless the detector learns on a part."""
        return aux


@dataclass(frozen=True)
class Evidence:
    """What the defender holds. aux: uint8 M,3,H,W to learn and calibrate on; images: uint8 N,3,H,W to judge."""

    aux: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Findings:
    """What a detector says. scores: float64 N of the judged images; calibration: float64 of held-out aux images.

    pictures: named uint8 arrays for the report (rows are images), picture_rows: which judged images they show.
    controls: scores of the judged images that should rank them worse (another score, a severed cue); rules: what other
    decision rules flag, bool N. outside: scores again with only the pixels kept, bool N,H,W (for evaluation).
    search_space: what was looked for; doubt: why the result cannot be vouched for, empty where it can.
    extras: further named arrays; summary: plain values.
    """

    scores: np.ndarray
    calibration: np.ndarray
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    picture_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    controls: dict[str, np.ndarray] = field(default_factory=dict)
    rules: dict[str, np.ndarray] = field(default_factory=dict)
    outside: Callable[[np.ndarray], np.ndarray] | None = None
    search_space: str = ""
    doubt: str = ""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Purifier(Plugin):
    """Base of `purify --method`: make a clean encoder from a suspicious one."""

    shelf: ClassVar[str] = "purifier"

    @abstractmethod
    def clean(self, encoder: ImageEncoder, images: np.ndarray, device: Device, seed: int, watch: Watch) -> ImageEncoder:
        """Return a purified encoder, using clean unlabeled images uint8 N,3,H,W. The input is left untouched."""


@dataclass(frozen=True, kw_only=True)
class Head(Plugin):
    """Base of `probe --head`: a classifier on frozen features."""

    shelf: ClassVar[str] = "head"

    @abstractmethod
    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        """Fit on `train`, choosing hyper-parameters on `valid` alone."""


@dataclass(frozen=True)
class Labelled:
    """Features float32 N,D with labels int64 N, on one device."""

    feats: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Classifier:
    """A fitted head: features N,D to predicted classes int64 N, and the hyper-parameters that were chosen."""

    predict: Callable[[Tensor], Tensor]
    chosen: dict[str, float | int | str]
