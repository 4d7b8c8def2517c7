"""The linear probe of CompRess and SSL-Backdoor, step by step as their code trains it."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.features import Labelled, Standardise, whole
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier
from sslbd_cli.probe.heads._stepped import SteppedLinear


@dataclass(frozen=True, kw_only=True)
class CompRess(SteppedLinear):
    """Train a linear layer on standardised unit features by SGD (CompRess, SSL-Backdoor: eval_linear.py).

    Features are scaled to unit length, then each dimension to mean 0 and variance 1 over the plain labelled images;
    the layer trains on random resized crops (area 0.08 to 1) and flips. Everything is fixed, so all labelled rows are
    used; the authors also drop the rate at epoch 40 of 40, which does nothing. They crop anew in each epoch, and we
    embed V views once and take them in turn. Their best epoch on the test split is not looked for: the last counts.
    `linear` solves the same problem to convergence, on plain images.
    """

    decay: float = key(0.0001, "weight decay", low=0, expert=True)
    views: int = key(4, "augmented views of each image, taken in turn; 0 trains on the plain image", low=0, high=1000)

    def augmented(self) -> int:
        return self.views

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        trained = self.trained(data, classes, seed, Standardise(data.feats), weight_decay=self.decay, keep_last=True)
        return Classifier(trained, {})
