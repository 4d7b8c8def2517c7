"""What objectives on images and captions share: two towers, their tokens, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.nets import Clip, ImageEncoder
from sslbd_cli.errors import InputError
from sslbd_cli.language.tokens import Tokens
from sslbd_cli.language.tower import SHARPEST, TextTower, pair_loss
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective

HEAD = 32  # width of one attention head


@dataclass(frozen=True, kw_only=True)
class PairObjective(Objective):
    """Base of objectives on pairs of images and captions.

    With --arch clip, both towers are those of the model. Any other --arch gets a small text tower of the same kind, of
    the size that the keys say, and a linear map to the joint space.
    """

    captions: ClassVar[bool] = True

    width: int = key(128, "width of the text tower; a multiple of 32", low=32, high=1024)
    depth: int = key(2, "transformer layers of the text tower", low=1, high=24)
    context: int = key(32, "tokens read of each caption; the rest is cut off", low=4, high=1024)
    out: int = key(128, "width of the joint space of images and texts", low=2, high=4096)
    crop: float = key(0.9, "smallest share of the image in a view", low=0.01, high=1, expert=True)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, scale=(self.crop, 1.0), flip=0, jitter=0, gray=0, blur=0, solarize=0),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        arch = getattr(encoder, "arch", None)
        parts = encoder.parts if isinstance(encoder, ImageEncoder) else {}
        if isinstance(arch, Clip) or "text" in parts:
            self._need_no_shape()
        text = parts.get("text") or TextTower(arch if isinstance(arch, Clip) else self._small_text())
        assert isinstance(text, TextTower)
        width = int(text.arch.config()["embed_dim"])
        is_joint = isinstance(arch, Clip) and dim == width
        projector = parts.get("projector") or (nn.Identity() if is_joint else nn.Linear(dim, width, bias=False))
        return nn.ModuleDict({"encoder": encoder, "projector": projector, "text": text})

    def _need_no_shape(self) -> None:
        """Raise InputError if the user gave keys that the model decides."""
        given = [name for name in ("width", "depth", "context", "out") if name in self.given_keys]
        if given:
            raise InputError(f"{self.name}: {given[0]}: the model has a text tower of its own; leave the key out")

    def _small_text(self) -> Clip:
        if self.width % HEAD:
            raise InputError(f"clip: width={self.width} is not a multiple of {HEAD}; give a multiple")
        return Clip(model="small", dim=self.out, text_layers=self.depth, text_width=self.width,
                    text_heads=self.width // HEAD, context=self.context)  # fmt: skip

    def tokens(self, learner: nn.Module, captions: Sequence[str]) -> Tokens:
        return text_tower(learner).tokenise(captions)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        images, ids = views
        text = text_tower(learner)
        return pair_loss(text, learner["projector"](learner["encoder"](images)), text(ids))

    @torch.no_grad()
    def after_step(self, learner: nn.Module, progress: float) -> None:
        tower = text_tower(learner)
        if tower.logit_bias is None:
            tower.logit_scale.clamp_(max=SHARPEST)

    def kept_parts(self, learner: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(learner, nn.ModuleDict)
        parts = {"projector": learner["projector"], "text": learner["text"]}
        return {name: part for name, part in parts.items() if not isinstance(part, nn.Identity)}


def text_tower(learner: nn.Module) -> TextTower:
    """Return the text tower of a learner."""
    assert isinstance(learner, nn.ModuleDict)
    tower = learner["text"]
    assert isinstance(tower, TextTower)
    return tower
