"""The zero-shot probe: texts act as the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from sslbd_cli.core.features import Labelled
from sslbd_cli.probe.contract import Classifier, Head
from sslbd_cli.probe.heads._stepped import whole


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Head):
    """Predict the class whose prompts are nearest by cosine (Radford et al. 2021, section 3.1); trains nothing.

    For CLIP models: --prompts names the texts, which the encoder's own text tower embeds. Prompts of one class are
    averaged as unit vectors, and the average is scaled to unit length. For an image tower whose text tower lies
    elsewhere, give the texts' features as --text. The prompts gtsrb and svhn are those of BadEncoder's zero-shot
    script; cifar10 and imagenet are CLIP's own ensembles.
    """

    takes_texts: ClassVar[bool] = True

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        prompts, absent = text_classifier(data.feats, data.labels, classes)

        def predict(feats: torch.Tensor) -> torch.Tensor:
            cosines = F.normalize(feats, dim=1) @ prompts.T
            return cosines.masked_fill(absent, float("-inf")).argmax(1)

        return Classifier(predict, {})


def text_classifier(feats: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unit vector of each class, C,D, and which classes have no text, bool C.

    feats: float N,D of texts; labels: int64 N, their classes.
    """
    unit = F.normalize(feats, dim=1)
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, labels, unit)
    return F.normalize(sums, dim=1), torch.bincount(labels, minlength=classes) == 0
