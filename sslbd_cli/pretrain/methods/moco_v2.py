"""MoCo v2 (Chen et al. 2020b): contrast a query with its key and a queue of earlier keys of a momentum encoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.train import ema, freeze
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.losses import Queue, check_batch, grouped, mlp, rising, shuffled


@dataclass(frozen=True, kw_only=True)
class MoCoV2(Objective):
    """Contrast queries with a queue of keys from a momentum encoder (Chen et al. 2020b).

    symmetric=yes is MoCo v2+ (Chen & He 2021; solo-learn): both views are queries and keys in turn. Each direction has
    its own queue, and the loss is the mean of both.
    """

    temperature: float = key(0.2, "temperature of the softmax over cosines", low=0.001)
    queue: int = key(4096, "length of the queue of keys; a multiple of the batch", low=2)
    symmetric: bool = key(False, "contrast in both directions, with one queue each (MoCo v2+)")
    momentum: float = key(0.99, "EMA momentum of the key encoder", low=0, high=1)
    momentum_end: float = key(
        0.0, "EMA momentum at the end, reached along a cosine; 0: constant", low=0, high=1, expert=True
    )
    groups: int = key(
        2,
        "batch parts with their own batch norm; keys are shuffled first (MoCo, section 3.3)",
        low=1,
        expert=True,
    )
    hidden: int = key(0, "width of the projector's hidden layer; 0: the embedding's width", low=0)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        check_batch(self.name, batch, self.queue, self.groups)
        online = nn.Sequential(encoder, mlp(dim, self.hidden or dim, self.out))
        queues = nn.ModuleList([Queue(self.queue, self.out) for _ in range(2 if self.symmetric else 1)])
        return nn.ModuleDict({"online": online, "target": freeze(copy.deepcopy(online)), "queues": queues})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        queues = learner["queues"]
        assert isinstance(queues, nn.ModuleList)
        first, second = views
        directions = zip(queues, [(first, second), (second, first)], strict=False)
        return torch.stack([self._contrast(learner, queue, *pair) for queue, pair in directions]).mean()

    def _contrast(self, learner: nn.ModuleDict, queue: nn.Module, view: Tensor, other: Tensor) -> Tensor:
        """Return InfoNCE of one view's queries against the other view's keys and a queue of earlier keys."""
        assert isinstance(queue, Queue)
        query = F.normalize(grouped(learner["online"], view, self.groups).float(), dim=1)
        with torch.no_grad():
            keys = F.normalize(shuffled(learner["target"], other, self.groups).float(), dim=1)
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * keys).sum(1, keepdim=True)  # B,1
            logits = torch.cat([positive, query @ queue.rows.T], dim=1) / self.temperature  # B,1+Q
        queue.latest = keys
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    def after_step(self, learner: nn.Module, progress: float) -> None:
        assert isinstance(learner, nn.ModuleDict)
        queues = learner["queues"]
        assert isinstance(queues, nn.ModuleList)
        keep = rising(self.momentum, self.momentum_end or self.momentum, progress)
        ema(learner["target"], learner["online"], keep)
        for queue in queues:
            assert isinstance(queue, Queue)
            queue.push()
