"""The linear probe of no-label backdoors: solo-learn's offline linear evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.features import Labelled
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier
from sslbd_cli.probe.heads._stepped import SteppedLinear, whole


@dataclass(frozen=True, kw_only=True)
class NLB(SteppedLinear):
    """Train a linear layer on raw features by SGD (no-label backdoors, solo-learn's offline probe).

    The defaults are those of CIFAR-10. On ImageNet-100 the authors use epochs=50,steps=30-40 and lr 1.0, 3.0, 0.3 and
    0.1 for SimCLR, MoCo, BYOL and Barlow Twins. The layer is trained on random resized crops (area 0.08 to 1) and
    flips; rows that do not fill a batch skip the epoch. Nothing is chosen, so all labelled rows are used. The authors
    crop anew in each epoch; we embed V views once and use them in turn.
    """

    lr: float = key(0.5)
    epochs: int = key(100)
    steps: str = key("60-80")
    views: int = key(4, "augmented views of each image, used in turn; 0: the plain image", low=0, high=1000)

    def augmented(self) -> int:
        return self.views

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        return Classifier(self.trained(data, classes, seed), {})
