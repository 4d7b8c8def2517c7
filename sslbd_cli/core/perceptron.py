"""Multi-layer perceptrons on unit features: downstream classifiers that are differentiable."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import Device, generator, seed_torch, send
from sslbd_cli.core.features import Labelled
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms


def new_perceptron(dim: int, hidden: tuple[int, ...], classes: int, dropout: float, seed: int) -> nn.Sequential:
    """Build the network with weights drawn from the seed. Dropout follows the first hidden layer only (BadEncoder)."""
    seed_torch(generator(seed, "mlp"))
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(dim, width), nn.ReLU()] + ([] if layers else [nn.Dropout(dropout)])
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, classes))


def fit_perceptron(net: nn.Sequential, train: Labelled, valid: Labelled, plan: Plan, seed: int) -> int:
    """Fit a network to unit features. Leave it in eval mode with the weights of the best epoch on `valid`.

    Returns this epoch, counted from 1. Rows are shuffled.
    """
    net.to(train.feats.device)
    unit, valid_feats = F.normalize(train.feats, dim=1), F.normalize(valid.feats, dim=1)
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})

    def loss(rows: Tensor, gen: torch.Generator) -> Terms:
        rows = send(rows, unit.device)
        return {"loss": F.cross_entropy(net(unit[rows]), train.labels[rows])}

    def judge(epoch: int) -> str:
        nonlocal best
        with torch.no_grad():
            right = float((net.eval()(valid_feats).argmax(1) == valid.labels).float().mean())
        if right >= best[0]:  # of equally good epochs, take the last one
            best = right, epoch + 1, copy.deepcopy(net.state_dict())
        return ""

    fit = Fit(net, loss, len(unit), plan, Session(Device(unit.device, "fp32"), seed))
    fit.remark = judge
    fit.run("mlp")
    net.load_state_dict(best[2])
    net.eval()
    return best[1]
