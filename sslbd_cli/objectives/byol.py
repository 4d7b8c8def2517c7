"""BYOL (Grill et al. 2020): predict a slowly moving target's projection of the other view; no negatives."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.bases import Objective
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import ema, freeze


@dataclass(frozen=True, kw_only=True)
class BYOL(Objective):
    """Predict a momentum target's projection of the other view (Grill et al. 2020)."""

    momentum: float = key(0.99, "share of the target kept at first; it rises to 1 along a cosine", low=0, high=1)
    hidden: int = key(1024, "width of the hidden layers of projector and predictor", low=2)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        online = nn.Sequential(encoder, _mlp(dim, self.hidden, self.out))
        return nn.ModuleDict(
            {
                "online": online,
                "predictor": _mlp(self.out, self.hidden, self.out),
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
        keep = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        ema(learner["target"], learner["online"], keep)


def _mlp(wide: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(wide, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def cosine_loss(guess: Tensor, goal: Tensor) -> Tensor:
    """Return the batch mean of 2 - 2 cos between rows of B,D."""
    return 2 - 2 * F.cosine_similarity(guess.float(), goal.float(), dim=1).mean()
