"""What linear heads share whose authors use SGD with a learning rate that falls in steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import Device, generator, seed_torch, send
from sslbd_cli.core.features import Labelled, numbers
from sslbd_cli.core.loader import room
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Head


@dataclass(frozen=True, kw_only=True)
class SteppedLinear(Head):
    """Base of linear heads without hyper-parameters to choose: they use all labelled rows and the last epoch."""

    lr: float = key(0.01, "learning rate", low=0)
    epochs: int = key(40, "passes over the labelled set", low=1)
    steps: str = key("15-30", "epochs after which the learning rate falls tenfold, joined by dashes", expert=True)
    batch: int = key(256, "most rows per step", low=1, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.milestones()

    def milestones(self) -> tuple[int, ...]:
        return numbers(self.steps, f"{self.name}: steps")

    def trained(
        self, data: Labelled, classes: int, seed: int, first: nn.Module | None = None, **more: Any
    ) -> Callable[[Tensor], Tensor]:
        """Train the layer after `first`. Return its classifier of features. more: other fields of Plan."""
        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(data.feats)), lr=self.lr,
                    schedule="step", milestones=self.milestones(), **more)  # fmt: skip
        return linear_classifier(data, classes, plan, seed, first)


class Standardise(nn.Module):
    """Scale features B,D to unit length, then standardise each dimension by mean and unbiased variance of given rows.

    This is CompRess (eval_linear.py), which adds 1e-5 to the variance; SSL-Backdoor uses it, too.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feats: Tensor) -> None:
        super().__init__()
        unit = F.normalize(feats, dim=1)
        self.register_buffer("mean", unit.mean(0))
        self.register_buffer("scale", (unit.var(0, correction=min(1, len(unit) - 1)) + 1e-5).rsqrt())

    def forward(self, feats: Tensor) -> Tensor:
        return (F.normalize(feats, dim=1) - self.mean) * self.scale


def whole(train: Labelled, valid: Labelled) -> Labelled:
    """Return all labelled rows, for a head that has nothing to select. Rows that are in both count once."""
    if train.feats is valid.feats:
        return train
    views = None
    if train.views is not None and valid.views is not None:
        count = len(train.feats)
        views = room((len(train.views), count + len(valid.feats), train.views.shape[2]), train.views.device)
        views[:, :count], views[:, count:] = train.views, valid.views
    return Labelled(torch.cat([train.feats, valid.feats]), torch.cat([train.labels, valid.labels]), views)


def linear_classifier(
    data: Labelled, classes: int, plan: Plan, seed: int, first: nn.Module | None = None
) -> Callable[[Tensor], Tensor]:
    """Train a linear layer on features (after `first`, which has no weights) by cross-entropy. Return the classifier.

    Epoch e uses the augmented views e mod V, or the features themselves if there are no views.
    """
    seed_torch(generator(seed, "linear"))
    layer = nn.Linear(data.feats.shape[1], classes)
    net = nn.Sequential(first or nn.Identity(), layer).to(data.feats.device)
    turns = itertools.cycle([data.feats] if data.views is None else data.views.unbind())
    views = data.feats

    def begin() -> None:
        nonlocal views
        views = next(turns)
        net.train()

    def loss(rows: Tensor, gen: torch.Generator) -> Terms:
        rows = send(rows, views.device)
        return {"loss": F.cross_entropy(net(views[rows]), data.labels[rows])}

    fit = Fit(net, loss, len(data.feats), plan, Session(Device(data.feats.device, "fp32"), seed))
    fit.begin_epoch = begin
    fit.run("linear")
    net.eval()
    return torch.no_grad()(lambda feats: net(feats).argmax(1))
