"""VICReg (Bardes et al. 2022): keep views equal, dimensions varied (variance) and not redundant (covariance)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Expander
from sslbd_cli.pretrain.losses import off_diagonal


@dataclass(frozen=True, kw_only=True)
class VICReg(Expander):
    """Weigh invariance, variance and covariance of the projections (Bardes et al. 2022).

    The variance term is the sum over both views, as in solo-learn; the authors' code halves it (variance=12.5).
    """

    invariance: float = key(25.0, "weight of the squared distance between two views", low=0)
    variance: float = key(25.0, "weight of the hinge on each dimension's standard deviation", low=0)
    covariance: float = key(1.0, "weight of the squared covariances", low=0)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        first, second = (learner["projector"](learner["encoder"](view)).float() for view in views)
        with torch.autocast(first.device.type, enabled=False):
            loss = self.invariance * F.mse_loss(first, second)
            for z in (first, second):
                loss = loss + self.variance * hinge(z) + self.covariance * redundancy(z)
        return loss


def hinge(z: Tensor) -> Tensor:
    """Return the mean of max(0, 1 - standard deviation) over the columns of B,D (equations 1 and 2)."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


def redundancy(z: Tensor) -> Tensor:
    """Return the sum of squared covariances between different columns of B,D, over D (equations 3 and 4)."""
    centred = z - z.mean(0)
    return off_diagonal(centred.T @ centred / (len(z) - 1)).square().sum() / z.shape[1]
