"""The contracts of the shelves: a final `__call__` does checks and bookkeeping once, authors write the mathematics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from sslbd_cli.core.device import Device
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.plugin import Plugin

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe
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
    def __call__(
        self, images: Tensor, gen: torch.Generator, phase: Phase = "test", boxes: Tensor | None = None
    ) -> Stamped:
        """Stamp a batch, uint8 or float in [0,1]; uint8 gives the same result after rounding.

        `gen` is a CPU generator. Place and strength may differ between training (`train`) and test images (`test`).
        `boxes` says where, instead of a draw by `place`; they must be of the sizes that `place` gives.
        Raises InputError where the trigger does not fit the images.
        """
        count, _, height, width = images.shape
        if boxes is None:
            boxes = self.place(count, height, width, gen, phase)
        if images.dtype == torch.uint8:
            # by a table: CUDA divides by multiplying, which rounds otherwise than the CPU
            levels = (torch.arange(256) / 255).to(images.device)
            pixels = levels.index_select(0, images.flatten().int()).view(images.shape)
            stamped = self.stamp(pixels, boxes, gen, phase).mul(255).round().clamp(0, 255).to(torch.uint8)
        else:
            stamped = self.stamp(images.clone(), boxes, gen, phase).clamp(0, 1)
        return Stamped(stamped, boxes)

    @property
    def has_place(self) -> bool:
        """Whether it is a box somewhere in the image, not a change of the whole of it."""
        return type(self).place is not Trigger.place

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        """Draw each image's box, int64 B,4 on the CPU as x, y, width, height. The default is the whole image."""
        return torch.tensor([[0, 0, width, height]]).repeat(count, 1)

    @abstractmethod
    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        """Change x, float B,C,H,W in [0,1], inside its boxes. x may be changed in place; draws come from gen."""


@dataclass(frozen=True, kw_only=True)
class Pool:
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
    def __call__(self, pool: Pool, budget: int, gen: torch.Generator) -> np.ndarray:
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
    def eligible(self, pool: Pool) -> int:
        """Count the rows that may be chosen."""

    @abstractmethod
    def select(self, pool: Pool, budget: int, gen: torch.Generator) -> np.ndarray:
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


@dataclass(frozen=True, kw_only=True)
class Objective(Plugin):
    """Base of `pretrain --method`: heads, loss and what follows each step. Labels are never seen.

    The state lives in the learner, a module that holds `encoder` and whatever heads, targets and queues the method
    has; parameters that are not trained by gradients have requires_grad off.
    """

    shelf: ClassVar[str] = "objective"
    captions: ClassVar[bool] = False  # whether images come with texts, as the last of the views

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        """Return the recipe of each view of an image, made from what the user asked for. The default is two alike."""
        return base, base

    @abstractmethod
    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        """Build the trainable module around an encoder of embedding width dim; `batch` is images per step."""

    @abstractmethod
    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        """Return the scalar loss of one batch of views, each float B,3,H,W in [0,1] (texts: uint8 B,L)."""

    def after_step(self, learner: nn.Module, progress: float) -> None:
        """Update targets and queues after the optimiser's step; progress runs from 0 to 1 over the training."""

    def kept(self, learner: nn.Module) -> dict[str, nn.Module]:
        """Return the parts that are stored beside the encoder: `projector`, `text`. The default is none."""
        return {}


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
    """A backdoored encoder, the last epoch's mean of each loss term, and the finished encoder's mean cosines.

    spread: how the finished encoder's triggered embeddings lie among clean ones; see core/inject.py, `outcome`.
    """

    encoder: ImageEncoder
    terms: dict[str, float]
    cosines: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)


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
class Labelled:
    """Features float32 N,D with labels int64 N, on one device; views: V,N,D of the same images, augmented V times."""

    feats: Tensor
    labels: Tensor
    views: Tensor | None = None


@dataclass(frozen=True)
class Classifier:
    """A fitted head: features N,D to predicted classes int64 N, and the hyper-parameters that were chosen."""

    predict: Callable[[Tensor], Tensor]
    chosen: dict[str, float | int | str]
