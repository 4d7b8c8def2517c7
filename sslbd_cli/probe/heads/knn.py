"""The nearest-neighbour probe, which needs no training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslbd_cli.core.features import Labelled, knn_predict
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head

NEIGHBOURS = (200, 50, 20, 5, 1)


@dataclass(frozen=True, kw_only=True)
class KNN(Head):
    """Vote among nearest neighbours by cosine, weighted by exp(cosine / temperature) (Wu et al. 2018).

    Published settings: k=200,temperature=0.1 (CTRL, lightly), k=20,temperature=0.07 (solo-learn, DINO) and k=1
    (SSL-Backdoor's repositories). If k is given, nothing is chosen.
    """

    k: int = key(0, "neighbours; 0: choose 1 to 200 on the validation split", low=0)
    temperature: float = key(0.1, "temperature of the votes' weights", low=0.001)

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        def right(k: int) -> float:
            guess = knn_predict(train.feats, train.labels, valid.feats, classes, k, self.temperature)
            return float((guess == valid.labels).float().mean())

        k = self.k or max(NEIGHBOURS, key=right)
        feats, labels = torch.cat([train.feats, valid.feats]), torch.cat([train.labels, valid.labels])
        return Classifier(
            lambda test: knn_predict(feats, labels, test, classes, k, self.temperature), {"k": min(k, len(feats))}
        )
