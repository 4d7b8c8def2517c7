"""Multi-layer perceptrons on unit features; the default is BadEncoder's downstream classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sslbd_cli.core.features import Labelled, numbers
from sslbd_cli.core.perceptron import fit_perceptron, new_perceptron
from sslbd_cli.core.train import Plan
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head


@dataclass(frozen=True, kw_only=True)
class MLP(Head):
    """Train 512-256-C with dropout 0.5 by Adam on unit features (BadEncoder, section V-A).

    The authors report the last of 500 epochs without shuffling. Here rows are shuffled, and the epoch is chosen on the
    validation split. hidden=512,dropout=0 is a plain two-layer perceptron.
    """

    hidden: str = key("512-256", "widths of the hidden layers, joined by dashes")
    dropout: float = key(0.5, "dropout after the first hidden layer", low=0, high=0.99)

    epochs: int = key(200, "passes over the labelled set", low=1)
    lr: float = key(0.001, "learning rate at the start of a cosine", low=0)
    batch: int = key(256, "most rows per step", low=2, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not numbers(self.hidden, "mlp: hidden"):
            raise InputError("mlp: hidden: expected at least one width; use --head linear for none")

    def perceptron(self, dim: int, classes: int, seed: int = 0) -> nn.Sequential:
        """Build the network with weights drawn from the seed."""
        return new_perceptron(dim, numbers(self.hidden, "mlp: hidden"), classes, self.dropout, seed)

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        net = self.perceptron(train.feats.shape[1], classes, seed)
        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(train.feats)), lr=self.lr, optimiser="adamw")
        epoch = fit_perceptron(net, train, valid, plan, seed)
        return Classifier(torch.no_grad()(lambda feats: net(F.normalize(feats, dim=1)).argmax(1)), {"epoch": epoch})
