"""What objectives share: heads, queues of embeddings, and losses that several methods use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.errors import InputError


def mlp(
    *widths: int,
    norm: bool = False,
    last_norm: bool = False,
    bias: bool = True,
    between: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build linear layers of these widths with `between` (ReLU) in between. `norm` puts batch norm before each of them.

    last_norm appends batch norm without affine parameters (SimSiam, Barlow Twins). bias is that of the last layer.
    """
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(wide, narrow), *([nn.BatchNorm1d(narrow)] if norm else []), between()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


def grouped(module: Callable[[Tensor], Tensor], view: Tensor, groups: int) -> Tensor:
    """Run a batch B,... through a module in `groups` parts. Each part has its own batch statistics."""
    return torch.cat([module(part) for part in view.chunk(groups)])


def shuffled(module: Callable[[Tensor], Tensor], view: Tensor, groups: int) -> Tensor:
    """Run a batch through a module in random groups, so that batch statistics do not reveal a row's partner."""
    order = torch.randperm(len(view), device=view.device)
    return grouped(module, view[order], groups)[order.argsort()]


def check_batch(name: str, batch: int, queue: int, groups: int) -> None:
    """Raise InputError if the queue is no multiple of the batch, or if groups do not divide the batch."""
    if queue % batch:
        raise InputError(
            f"{name}: queue={queue} is not a multiple of the batch of {batch}; "
            f"give queue={-(-queue // batch) * batch}, or another --batch"
        )
    if batch % groups:
        raise InputError(f"{name}: groups={groups} does not divide the batch of {batch}; give a divisor of it")


def rising(start: float, end: float, progress: float) -> float:
    """Go from start to end along half a cosine as progress goes from 0 to 1 (BYOL's momentum)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


def off_diagonal(square: Tensor) -> Tensor:
    """Return a copy of a matrix D,D with zeros on its diagonal."""
    return square - square.diagonal().diag()


class Queue(nn.Module):
    """Hold the latest `length` unit embeddings of width `dim`, first in, first out. Starts with random directions."""

    rows: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int, gen: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, dim, generator=gen), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.latest: Tensor = self.rows[:0]  # pushed at the next step, after the loss has used the rows

    @torch.no_grad()
    def push(self) -> None:
        """Replace the oldest rows by `latest` B,D. The length is a multiple of B."""
        latest = self.latest
        at = (self.pointer + torch.arange(len(latest), device=self.rows.device)) % len(self.rows)
        self.rows.index_copy_(0, at, latest.to(self.rows.dtype))
        self.pointer.add_(len(latest)).remainder_(len(self.rows))


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent of projections 2B,D, where rows i and B+i are two views: the mean over all 2B anchors.

    The denominator sums over the other 2B-1 rows, including the positive (SimCLR, equation 1).
    """
    z = F.normalize(z, dim=1)
    count = len(z)
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ z.T / temperature  # 2B,2B
    itself = torch.eye(count, dtype=torch.bool, device=z.device)
    positive = torch.arange(count, device=z.device).roll(count // 2)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), positive)


def cosine_loss(guess: Tensor, goal: Tensor) -> Tensor:
    """Return the batch mean of 2 - 2 cos between rows of B,D."""
    return 2 - 2 * F.cosine_similarity(guess.float(), goal.float(), dim=1).mean()
