"""The zero-shot probe: texts act as the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from sslbd_cli.core.features import Labelled
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head
from sslbd_cli.probe.heads._stepped import whole


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Head):
    """Predict the class whose prompts are nearest by cosine (Radford et al. 2021, section 3.1); trains nothing.

    For encoders trained on images and captions: give --text, the prompts' features, instead of --train. Prompts of one
    class are averaged as unit vectors, and the average is scaled to unit length. An encoder of `pretrain --method clip`
    meets its texts after the projection stored beside it. If the embedding itself is the texts' space, as in image
    towers that end in this projection, use space=embedding. examples/prompts has files of CLASS<tab>PROMPT lines for
    GTSRB and SVHN, as in BadEncoder's zero-shot script.
    """

    takes_texts: ClassVar[bool] = True

    space: str = key("projected", "space of images and texts", choices=("projected", "embedding"))

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        data = whole(train, valid)
        unit = F.normalize(data.feats, dim=1)
        sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, data.labels, unit)
        prompts = F.normalize(sums, dim=1)
        absent = torch.bincount(data.labels, minlength=classes) == 0

        def predict(feats: torch.Tensor) -> torch.Tensor:
            cosines = F.normalize(feats, dim=1) @ prompts.T
            return cosines.masked_fill(absent, float("-inf")).argmax(1)

        return Classifier(predict, {})
