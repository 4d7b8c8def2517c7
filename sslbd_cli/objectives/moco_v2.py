"""MoCo v2 (Chen et al. 2020b): a query against its key and a queue of earlier keys from a slowly moving encoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.bases import Objective
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import ema, freeze


@dataclass(frozen=True, kw_only=True)
class MoCoV2(Objective):
    """Contrast queries with a queue of keys from a momentum encoder (Chen et al. 2020b)."""

    temperature: float = key(0.2, "of the softmax over cosines", low=0.001)
    queue: int = key(4096, "keys kept; a multiple of the batch", low=2)
    momentum: float = key(0.99, "share of the key encoder kept at each step", low=0, high=1)
    groups: int = key(2, "parts of the shuffled key batch that are normalised apart (shuffle-BN on one device)", low=1)
    out: int = key(128, "width of the projection", low=2)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        if self.queue % batch:
            raise InputError(f"moco-v2: queue={self.queue} is not a multiple of the batch of {batch}")
        if batch % self.groups:
            raise InputError(f"moco-v2: groups={self.groups} does not divide the batch of {batch}")
        return _Learner(encoder, dim, self.out, self.queue)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, _Learner)
        query = F.normalize(learner.online(views[0]).float(), dim=1)
        with torch.no_grad():
            keys = F.normalize(self._keys(learner, views[1]).float(), dim=1)
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * keys).sum(1, keepdim=True)  # B,1
            logits = torch.cat([positive, query @ learner.queue.T], dim=1) / self.temperature  # B,1+Q
        learner.latest = keys
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    def _keys(self, learner: _Learner, view: Tensor) -> Tensor:
        """Encode keys in shuffled groups, so that a batch's statistics do not give a query away to its key."""
        order = torch.randperm(len(view), device=view.device)
        keys = torch.cat([learner.target(part) for part in view[order].chunk(self.groups)])
        return keys[order.argsort()]

    def after_step(self, learner: nn.Module, progress: float) -> None:
        assert isinstance(learner, _Learner)
        ema(learner.target, learner.online, self.momentum)
        learner.enqueue()


class _Learner(nn.Module):
    queue: Tensor
    pointer: Tensor

    def __init__(self, encoder: nn.Module, dim: int, out: int, length: int) -> None:
        super().__init__()
        projector = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))
        self.online = nn.Sequential(encoder, projector)
        self.target = freeze(copy.deepcopy(self.online))
        self.register_buffer("queue", F.normalize(torch.randn(length, out), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.latest: Tensor | None = None

    @torch.no_grad()
    def enqueue(self) -> None:
        assert self.latest is not None
        rows = (self.pointer + torch.arange(len(self.latest), device=self.queue.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, self.latest)
        self.pointer.add_(len(self.latest)).remainder_(len(self.queue))
