"""Multi-layer perceptrons on unit features; by default BadEncoder's downstream classifier."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.bases import Classifier, Head, Labelled
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import numbers
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import Fit, Plan, Terms
from sslbd_cli.core.watch import unwatched


@dataclass(frozen=True, kw_only=True)
class MLP(Head):
    """Train 512-256-C with dropout 0.5 by Adam on unit features (BadEncoder, section V-A).

    The authors report the last of 500 unshuffled epochs; here rows are shuffled and the epoch is chosen on the
    validation split. hidden=512,dropout=0 is a plain two-layer perceptron.
    """

    hidden: str = key("512-256", "widths of the hidden layers, joined by dashes")
    dropout: float = key(0.5, "after the first hidden layer", low=0, high=0.99)

    epochs: int = key(200, "passes over the labelled set", low=1)
    lr: float = key(0.001, "learning rate at the start of a cosine", low=0)
    batch: int = key(256, "rows per step, at most", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not numbers(self.hidden, "mlp: hidden"):
            raise InputError("mlp: hidden: expected one width at least; --head linear has none")

    def perceptron(self, dim: int, classes: int) -> nn.Sequential:
        """Build the network: dropout follows the first hidden layer alone, as in the authors' code."""
        layers: list[nn.Module] = []
        for width in numbers(self.hidden, "mlp: hidden"):
            layers += [nn.Linear(dim, width), nn.ReLU()] + ([] if layers else [nn.Dropout(self.dropout)])
            dim = width
        return nn.Sequential(*layers, nn.Linear(dim, classes))

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        torch.manual_seed(generator(seed, "mlp").initial_seed())
        net = self.perceptron(train.feats.shape[1], classes).to(train.feats.device)
        unit, held = F.normalize(train.feats, dim=1), F.normalize(valid.feats, dim=1)
        best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            rows = rows.to(unit.device)
            return {"loss": F.cross_entropy(net(unit[rows]), train.labels[rows])}

        def judge(epoch: int) -> str:
            nonlocal best
            with torch.no_grad():
                right = float((net.eval()(held).argmax(1) == valid.labels).float().mean())
            if right >= best[0]:  # of equally good epochs the last, which has learned most
                best = right, epoch + 1, copy.deepcopy(net.state_dict())
            return ""

        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(unit)), lr=self.lr, optimiser="adamw")
        fit = Fit(net, loss, len(unit), plan, Device(unit.device, "fp32"), seed)
        fit.remark = judge
        fit.run(unwatched, "mlp")
        net.load_state_dict(best[2])
        net.eval()
        return Classifier(torch.no_grad()(lambda feats: net(F.normalize(feats, dim=1)).argmax(1)), {"epoch": best[1]})
