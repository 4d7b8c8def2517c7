"""RotNet (Gidaris, Singh, Komodakis 2018): predict by how many quarter turns an image was rotated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.pretrain.contract import Objective

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe

TURNS = 4


@dataclass(frozen=True, kw_only=True)
class RotNet(Objective):
    """Predict which of four rotations each image underwent (Gidaris et al. 2018); each image enters a batch four times.

    All four rotations of an image are in one batch, as in section 3 of the paper. The view is a crop and a flip without
    any change of colour (SSL-Backdoor's recipe).
    """

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, jitter=0.0, gray=0.0),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(dim, TURNS)})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        (view,) = views
        turned = torch.cat([view.rot90(turns, (2, 3)) for turns in range(TURNS)])  # 4B,3,H,W
        turns = torch.arange(TURNS, device=view.device).repeat_interleave(len(view))
        return F.cross_entropy(learner["head"](learner["encoder"](turned)).float(), turns)
