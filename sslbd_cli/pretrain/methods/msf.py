"""MSF (Koohpayegani et al. 2021): move a query towards the nearest neighbours of its target; k = 1 is BYOL's loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.train import ema, freeze
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.losses import Queue, check_batch, grouped, mlp, shuffled

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe


@dataclass(frozen=True, kw_only=True)
class MSF(Objective):
    """Shift each query to the mean of its target's nearest neighbours (Koohpayegani et al. 2021).

    The query is a full view; the target is a weak one (crop and flip only). The target encoder is updated after the
    step. The authors update it before the next forward pass, which is equivalent.
    """

    queue: int = key(4096, "length of the queue of targets (paper: 128000); a multiple of the batch", low=2)
    k: int = key(5, "nearest neighbours of a target, including itself", low=1)
    momentum: float = key(0.99, "EMA momentum of the target encoder", low=0, high=1)
    groups: int = key(1, "batch parts with their own batch norm; targets are shuffled first", low=1, expert=True)
    hidden: int = key(0, "width of the heads' hidden layers; 0: twice the embedding's width", low=0)
    out: int = key(0, "width of the projection; 0: a quarter of the embedding's width", low=0)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return base, replace(base, jitter=0, gray=0, blur=0, solarize=0)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        check_batch(self.name, batch, self.queue, self.groups)
        if self.k > self.queue:
            raise InputError(f"msf: k={self.k} neighbours are more than the queue of {self.queue}; lower k")
        hidden, out = self.hidden or 2 * dim, self.out or max(dim // 4, 2)
        online = nn.Sequential(encoder, mlp(dim, hidden, out, norm=True))
        return nn.ModuleDict(
            {
                "online": online,
                "predictor": mlp(out, hidden, out, norm=True),
                "target": freeze(copy.deepcopy(online)),
                "queue": Queue(self.queue, out),
            }
        )

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        queue = learner["queue"]
        assert isinstance(queue, Queue)
        strong, weak = views
        query = grouped(lambda part: learner["predictor"](learner["online"](part)), strong, self.groups)
        query = F.normalize(query.float(), dim=1)
        with torch.no_grad():
            target = F.normalize(shuffled(learner["target"], weak, self.groups).float(), dim=1)
            queue.latest = target
            queue.push()  # push before the search, so that each target finds itself first
        with torch.autocast(query.device.type, enabled=False):
            nearest = (target @ queue.rows.T).topk(self.k, dim=1).indices  # B,k
            return 2 - 2 * torch.einsum("bd,bkd->bk", query, queue.rows[nearest]).mean()

    def after_step(self, learner: nn.Module, progress: float) -> None:
        assert isinstance(learner, nn.ModuleDict)
        ema(learner["target"], learner["online"], self.momentum)
