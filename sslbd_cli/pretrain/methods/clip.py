"""CLIP (Radford et al. 2021), small: attract images and their captions, repel all other pairs of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.text import HEAD, SHARPEST, TextTower, clip_loss
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective


@dataclass(frozen=True, kw_only=True)
class CLIP(Objective):
    """Match images with their captions within the batch (Radford et al. 2021); needs a dataset with captions.

    As in the paper, a crop is the only augmentation. Captions may name colours and sides, so views are never flipped
    or recoloured; --crop-scale, --jitter, --gray and --blur have no effect. The linear map of the images and the text
    tower are stored beside the encoder; `sslbd embed --projected` and `sslbd embed --text` use them.
    """

    captions: ClassVar[bool] = True

    width: int = key(128, "width of the text tower; a multiple of 32", low=32, high=1024)
    depth: int = key(2, "transformer layers of the text tower", low=1, high=24)
    context: int = key(128, "bytes read of each caption; the rest is cut off", low=8, high=1024)
    out: int = key(128, "width of the joint space of images and texts", low=2, high=4096)
    crop: float = key(0.9, "smallest share of the image in a view", low=0.01, high=1, expert=True)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, scale=(self.crop, 1.0), flip=0, jitter=0, gray=0, blur=0, solarize=0),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        if self.width % HEAD:
            raise InputError(f"clip: width={self.width} is not a multiple of {HEAD}; give a multiple")
        text = TextTower(self.width, self.depth, self.context, self.out)
        return nn.ModuleDict({"encoder": encoder, "projector": nn.Linear(dim, self.out, bias=False), "text": text})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        images, captions = views
        text = _tower(learner)
        return clip_loss(learner["projector"](learner["encoder"](images)), text(captions), text.log_scale.exp())

    @torch.no_grad()
    def after_step(self, learner: nn.Module, progress: float) -> None:
        _tower(learner).log_scale.clamp_(max=SHARPEST)

    def kept_parts(self, learner: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(learner, nn.ModuleDict)
        return {"projector": learner["projector"], "text": learner["text"]}


def _tower(learner: nn.Module) -> TextTower:
    assert isinstance(learner, nn.ModuleDict)
    tower = learner["text"]
    assert isinstance(tower, TextTower)
    return tower
