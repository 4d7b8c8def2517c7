"""Barlow Twins (Zbontar et al. 2021): make the two views' cross-correlation the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Expander
from sslbd_cli.pretrain.losses import off_diagonal


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(Expander):
    """Bring the cross-correlation of two views close to the identity (Zbontar et al. 2021)."""

    offdiagonal: float = key(0.0051, "weight of the off-diagonal terms (the paper's lambda)", low=0)
    scale: float = key(0.1, "factor of the whole loss (solo-learn: 0.1; paper: 1)", low=0.0001, expert=True)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        first, second = (learner["projector"](learner["encoder"](view)).float() for view in views)
        with torch.autocast(first.device.type, enabled=False):
            correlation = standardise(first).T @ standardise(second) / len(first)  # D,D
            on = (1 - correlation.diagonal()).square().sum()
            return self.scale * (on + self.offdiagonal * off_diagonal(correlation).square().sum())


def standardise(z: Tensor) -> Tensor:
    """Give each column of B,D mean 0 and variance 1 over the batch, like batch norm without affine parameters."""
    variance, mean = torch.var_mean(z, 0, correction=0)
    return (z - mean) * (variance + 1e-5).rsqrt()
