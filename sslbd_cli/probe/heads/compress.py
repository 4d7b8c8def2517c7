"""The linear probe of CompRess and SSL-Backdoor, trained as in their code."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.features import Labelled
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier
from sslbd_cli.probe.heads._stepped import Standardise, SteppedLinear, whole


@dataclass(frozen=True, kw_only=True)
class CompRess(SteppedLinear):
    """Train a linear layer on standardised unit features by SGD (CompRess, SSL-Backdoor: eval_linear.py).

    Features are scaled to unit length, then each dimension to mean 0 and variance 1 over the plain labelled images. The
    layer is trained on random resized crops (area 0.08 to 1) and flips. Nothing is chosen, so all labelled rows are
    used. The authors also drop the learning rate at epoch 40 of 40, which has no effect. They crop anew in each epoch;
    we embed V views once and use them in turn. They report the best epoch on the test split; we report the last.
    `linear` solves the same problem to convergence on plain images.
    """

    decay: float = key(0.0001, "weight decay", low=0, expert=True)
    views: int = key(4, "augmented views of each image, used in turn; 0: the plain image", low=0, high=1000)

    def augmented(self) -> int:
        return self.views

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        trained = self.trained(data, classes, seed, Standardise(data.feats), weight_decay=self.decay, keep_last=True)
        return Classifier(trained, {})
