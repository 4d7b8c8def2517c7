"""SimCLR (Chen et al. 2020): two views of an image attract, all other views in the batch repel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.bases import Objective
from sslbd_cli.core.plugin import key


@dataclass(frozen=True, kw_only=True)
class SimCLR(Objective):
    """Contrast two views within the batch by NT-Xent (Chen et al. 2020)."""

    temperature: float = key(0.2, "of the softmax over cosines", low=0.001)
    hidden: int = key(0, "width of the projector's hidden layer; 0 is the embedding's", low=0)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        hidden = self.hidden or dim
        projector = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, self.out))
        return nn.ModuleDict({"encoder": encoder, "projector": projector})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        z = learner["projector"](learner["encoder"](torch.cat(views)))
        return nt_xent(z.float(), self.temperature)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent of projections 2B,D whose rows i and B+i are two views: mean over all 2B anchors.

    The denominator runs over the other 2B-1 rows, the positive among them (paper, equation 1).
    """
    z = F.normalize(z, dim=1)
    count = len(z)
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ z.T / temperature  # 2B,2B
    itself = torch.eye(count, dtype=torch.bool, device=z.device)
    positive = torch.arange(count, device=z.device).roll(count // 2)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), positive)
