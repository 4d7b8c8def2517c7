"""BYOL (Grill et al. 2020): predict a momentum target's projection of the other view, without negatives."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.core.train import ema, freeze
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import UnevenViews
from sslbd_cli.pretrain.losses import cosine_loss, mlp, rising


@dataclass(frozen=True, kw_only=True)
class BYOL(UnevenViews):
    """Predict a momentum target's projection of the other view (Grill et al. 2020)."""

    momentum: float = key(0.99, "EMA momentum of the target at the start", low=0, high=1)
    momentum_end: float = key(1.0, "EMA momentum at the end, reached along a cosine", low=0, high=1, expert=True)
    hidden: int = key(1024, "width of the projector's hidden layer", low=2)
    predictor: int = key(0, "width of the predictor's hidden layer; 0: the projector's", low=0, expert=True)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        online = nn.Sequential(encoder, mlp(dim, self.hidden, self.out, norm=True))
        return nn.ModuleDict(
            {
                "online": online,
                "predictor": mlp(self.out, self.predictor or self.hidden, self.out, norm=True),
                "target": freeze(copy.deepcopy(online)),
            }
        )

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        first, second = views
        with torch.no_grad():
            goals = learner["target"](second), learner["target"](first)
        guesses = (learner["predictor"](learner["online"](view)) for view in views)
        return torch.stack([cosine_loss(guess, goal) for guess, goal in zip(guesses, goals, strict=True)]).sum()

    def after_step(self, learner: nn.Module, progress: float) -> None:
        assert isinstance(learner, nn.ModuleDict)
        ema(learner["target"], learner["online"], rising(self.momentum, self.momentum_end, progress))
