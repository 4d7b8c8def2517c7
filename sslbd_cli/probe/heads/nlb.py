"""The linear probe of no-label backdoors, which is solo-learn's offline linear evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.features import Labelled, linear_classifier, numbers, whole
from sslbd_cli.core.train import Plan
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head


@dataclass(frozen=True, kw_only=True)
class NLB(Head):
    """Train a linear layer on raw features by SGD (no-label backdoors, solo-learn's offline probe).

    The defaults are those of CIFAR-10; on ImageNet-100 the authors take epochs=50,steps=30-40 and lr 1.0, 3.0, 0.3
    and 0.1 for SimCLR, MoCo, BYOL and Barlow Twins. The layer trains on random resized crops (area 0.08 to 1) and
    flips; rows that fill no batch sit the epoch out. Everything is fixed, so all labelled rows are used. The authors
    crop anew in each epoch, and we embed V views once and take them in turn.
    """

    lr: float = key(0.5, "learning rate", low=0)
    epochs: int = key(100, "passes over the labelled set", low=1)
    steps: str = key("60-80", "epochs after which the learning rate falls tenfold, joined by dashes", expert=True)
    batch: int = key(256, "rows per step, at most", low=1, expert=True)
    views: int = key(4, "augmented views of each image, taken in turn; 0 trains on the plain image", low=0, high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers(self.steps, "nlb: steps")

    def augmented(self) -> int:
        return self.views

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        plan = Plan(
            epochs=self.epochs, batch=min(self.batch, len(data.feats)), lr=self.lr,
            schedule="step", milestones=numbers(self.steps, "nlb: steps"),
        )  # fmt: skip
        return Classifier(linear_classifier(data, classes, plan, seed), {})
