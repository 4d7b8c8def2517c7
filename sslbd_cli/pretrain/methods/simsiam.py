"""SimSiam (Chen & He 2021): predict the other view's projection, with a stopped gradient and no negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.losses import mlp


@dataclass(frozen=True, kw_only=True)
class SimSiam(Objective):
    """Predict the other view's projection behind a stopped gradient (Chen & He 2021).

    The predictor's learning rate falls like all others; the authors' code can keep it constant.
    """

    hidden: int = key(512, "width of the projector's hidden layers", low=2)
    out: int = key(512, "width of the projection", low=2)
    predictor: int = key(128, "width of the predictor's bottleneck", low=2)
    layers: int = key(3, "layers of the projector (2 in lightly's CIFAR runs)", low=2, high=4, expert=True)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        # the last batch norm cancels any bias, so that layer has none
        widths = (dim, *[self.hidden] * (self.layers - 1), self.out)
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "projector": mlp(*widths, norm=True, last_norm=True, bias=False),
                "predictor": mlp(self.out, self.predictor, self.out, norm=True),
            }
        )

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        z = [learner["projector"](learner["encoder"](view)) for view in views]
        first, second = (learner["predictor"](each).float() for each in z)
        goals = [each.detach().float() for each in z]
        cosines = F.cosine_similarity(first, goals[1], dim=1), F.cosine_similarity(second, goals[0], dim=1)
        return -torch.cat(cosines).mean()
