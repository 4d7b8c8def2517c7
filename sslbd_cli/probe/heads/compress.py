"""The linear probe of CompRess and SSL-Backdoor, step by step as their code trains it."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.features import Labelled, Standardise, linear_classifier, numbers, whole
from sslbd_cli.core.train import Plan
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head


@dataclass(frozen=True, kw_only=True)
class CompRess(Head):
    """Train a linear layer on standardised unit features by SGD (CompRess, SSL-Backdoor: eval_linear.py).

    Features are scaled to unit length, then each dimension to mean 0 and variance 1 over the plain labelled images;
    the layer trains on random resized crops (area 0.08 to 1) and flips. Everything is fixed, so all labelled rows are
    used; the authors also drop the rate at epoch 40 of 40, which does nothing. They crop anew in each epoch, and we
    embed V views once and take them in turn. Their best epoch on the test split is not looked for: the last counts.
    `linear` solves the same problem to convergence, on plain images.
    """

    lr: float = key(0.01, "learning rate", low=0)
    epochs: int = key(40, "passes over the labelled set", low=1)
    steps: str = key("15-30", "epochs after which the learning rate falls tenfold, joined by dashes", expert=True)
    batch: int = key(256, "rows per step, at most", low=1, expert=True)
    decay: float = key(0.0001, "weight decay", low=0, expert=True)
    views: int = key(4, "augmented views of each image, taken in turn; 0 trains on the plain image", low=0, high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers(self.steps, "compress: steps")

    def augmented(self) -> int:
        return self.views

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        plan = Plan(
            epochs=self.epochs, batch=min(self.batch, len(data.feats)), lr=self.lr, weight_decay=self.decay,
            schedule="step", milestones=numbers(self.steps, "compress: steps"), keep_last=True,
        )  # fmt: skip
        return Classifier(linear_classifier(data, classes, plan, seed, Standardise(data.feats)), {})
