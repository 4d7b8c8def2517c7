"""The contract of pre-training objectives: what they are given and what they return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from sslbd_cli.plugin import Plugin, key
from sslbd_cli.pretrain.losses import mlp

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe
    from sslbd_cli.language.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Objective(Plugin):
    """Base of `pretrain --method`: heads, loss and updates after each step. It never sees labels.

    The state lives in the learner: a module with `encoder` and the method's heads, targets and queues. Parameters that
    are not trained by gradients have requires_grad off.
    """

    shelf: ClassVar[str] = "objective"
    captions: ClassVar[bool] = False  # whether it also gets the captions' tokens, as the last of the views

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        """Return the augmentation recipe of each view, made from the user's recipe. Default: two equal views."""
        return base, base

    @abstractmethod
    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        """Build the trainable module around an encoder of embedding width dim. batch: images per step."""

    @abstractmethod
    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        """Return the scalar loss of a batch of views, each float B,3,H,W in [0,1] (tokens: int32 B,L)."""

    def tokens(self, learner: nn.Module, captions: Sequence[str]) -> Tokens:
        """Return the tokens of captions, if the objective reads any."""
        raise TypeError(f"{self.name} reads no captions")

    def begin_epoch(self, learner: nn.Module, epoch: int) -> None:
        """Prepare the learner for an epoch, counted from 0. Nothing that a checkpoint would need may be kept here."""

    def after_step(self, learner: nn.Module, progress: float) -> None:
        """Update targets and queues after the optimiser's step. progress goes from 0 to 1 over the training."""

    def kept_parts(self, learner: nn.Module) -> dict[str, nn.Module]:
        """Return the parts to store beside the encoder: `projector`, `text`. Default: none."""
        return {}


@dataclass(frozen=True, kw_only=True)
class UnevenViews(Objective):
    """Base of objectives whose papers draw the two views of an image differently (BYOL, appendix B)."""

    blur_second: float = key(
        1.0,
        "blur probability of the second view, as a share of the first's (papers: 0.1)",
        low=0,
        high=1,
        expert=True,
    )
    solarize_first: float = key(
        0.0,
        "solarization probability of the first view, as a share of the second's",
        low=0,
        high=1,
        expert=True,
    )

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        first = replace(base, solarize=base.solarize * self.solarize_first)
        return first, replace(base, blur=base.blur * self.blur_second)


@dataclass(frozen=True, kw_only=True)
class Expander(UnevenViews):
    """Base of objectives that decorrelate a wide projection of both views (Barlow Twins, VICReg)."""

    hidden: int = key(512, "width of the projector's hidden layers", low=2)
    out: int = key(512, "width of the projection", low=2)
    layers: int = key(3, "layers of the projector", low=2, high=4, expert=True)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        projector = mlp(dim, *[self.hidden] * (self.layers - 1), self.out, norm=True)
        return nn.ModuleDict({"encoder": encoder, "projector": projector})
