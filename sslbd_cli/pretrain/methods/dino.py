"""DINO (Caron et al. 2021): match a momentum teacher's centred and sharpened distribution over prototypes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.train import ema, freeze
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import UnevenViews
from sslbd_cli.pretrain.losses import mlp, rising


@dataclass(frozen=True, kw_only=True)
class DINO(UnevenViews):
    """Match a momentum teacher's centred distribution over prototypes (Caron et al. 2021), with two views.

    Durations are shares of the training: one epoch of 100 is 0.01. The authors' gradient clipping is left out.
    """

    prototypes: int = key(1024, "number of prototypes (4096 in solo-learn on CIFAR)", low=2)
    temperature: float = key(0.1, "temperature of the student's softmax", low=0.001)
    teacher: float = key(0.04, "temperature of the teacher's softmax", low=0.001)
    teacher_start: float = key(0.04, "temperature of the teacher's softmax at the start", low=0.001, expert=True)
    warmup: float = key(
        0.0, "share of the training in which the teacher's temperature rises", low=0, high=1, expert=True
    )
    frozen: float = key(
        0.02, "share of the training with frozen prototypes (paper: one epoch)", low=0, high=1, expert=True
    )
    centre: float = key(0.9, "EMA momentum of the centre of the teacher's outputs", low=0, high=1, expert=True)
    momentum: float = key(0.99, "EMA momentum of the teacher at the start", low=0, high=1)
    momentum_end: float = key(1.0, "EMA momentum at the end, reached along a cosine", low=0, high=1, expert=True)
    hidden: int = key(512, "width of the head's hidden layers", low=2)
    layers: int = key(3, "layers of the head (2 in lightly's CIFAR runs)", low=2, high=4, expert=True)
    out: int = key(256, "width of the head's bottleneck", low=2)
    norm: bool = key(True, "batch norm in the head (solo-learn on CIFAR: no)", expert=True)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        widths = (dim, *[self.hidden] * (self.layers - 1), self.out)
        head = mlp(*widths, norm=self.norm, between=nn.GELU).apply(_start_small)
        online = nn.Sequential(encoder, head, Prototypes(self.prototypes, self.out))
        learner = nn.ModuleDict(
            {"online": online, "target": freeze(copy.deepcopy(online)), "centre": Centre(self.prototypes)}
        )
        self._schedule(learner, 0)
        return learner

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        centre = learner["centre"]
        assert isinstance(centre, Centre)
        first, second = (learner["online"](view).float() / self.temperature for view in views)
        with torch.no_grad():
            teacher_feats = [learner["target"](view).float() for view in views]
            goals = [F.softmax((each - centre.mean) / centre.temperature, dim=1) for each in teacher_feats]
        centre.latest = torch.cat(teacher_feats).mean(0)
        return (F.cross_entropy(first, goals[1]) + F.cross_entropy(second, goals[0])) / 2

    def after_step(self, learner: nn.Module, progress: float) -> None:
        assert isinstance(learner, nn.ModuleDict)
        centre = learner["centre"]
        assert isinstance(centre, Centre)
        ema(learner["target"], learner["online"], rising(self.momentum, self.momentum_end, progress))
        centre.mean.lerp_(centre.latest, 1 - self.centre)
        self._schedule(learner, progress)

    def _schedule(self, learner: nn.ModuleDict, progress: float) -> None:
        """Set the scheduled values of the next step. They are buffers, so that checkpoints hold them."""
        warm = progress / self.warmup if progress < self.warmup else 1.0
        learner["centre"].get_buffer("temperature").fill_(
            self.teacher_start + (self.teacher - self.teacher_start) * warm
        )
        learner["online"].get_buffer("2.frozen").fill_(progress < self.frozen)


class Prototypes(nn.Module):
    """Return cosines of a batch B,D with K prototypes: the paper's weight-normed last layer with norms fixed at 1."""

    frozen: Tensor

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        # Frozen prototypes get zero gradients. Weight decay only shortens them and keeps their directions.
        weight = torch.where(self.frozen, self.weight.detach(), self.weight)
        return F.linear(F.normalize(x.float(), dim=1), F.normalize(weight, dim=1))


class Centre(nn.Module):
    """Hold the running mean K of the teacher's outputs and the temperature of the teacher's softmax."""

    mean: Tensor
    temperature: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("temperature", torch.ones(()))
        self.latest: Tensor = self.mean  # mean over the last batch, for the next update


def _start_small(module: nn.Module) -> None:
    """Initialise a linear layer as the authors do: truncated normal of deviation 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
