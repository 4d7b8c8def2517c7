"""SimCLR (Chen et al. 2020): attract two views of an image, repel all other views in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.losses import mlp, nt_xent


@dataclass(frozen=True, kw_only=True)
class SimCLR(Objective):
    """Contrast two views within the batch by NT-Xent (Chen et al. 2020)."""

    temperature: float = key(0.2, "temperature of the softmax over cosines", low=0.001)
    hidden: int = key(0, "width of the projector's hidden layer; 0: the embedding's width", low=0)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        return nn.ModuleDict({"encoder": encoder, "projector": mlp(dim, self.hidden or dim, self.out)})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        z = learner["projector"](learner["encoder"](torch.cat(views)))
        return nt_xent(z.float(), self.temperature)
