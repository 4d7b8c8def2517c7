"""PAR, perturb and recover (Singh et al. 2024): push both towers away from the poisoned model, held by clean pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.augment import augment
from sslbd_cli.core.train import Terms
from sslbd_cli.language.tower import pair_loss
from sslbd_cli.plugin import key
from sslbd_cli.purify.pairs import PairPurifier, Towers


@dataclass(frozen=True, kw_only=True)
class PAR(PairPurifier):
    """Push embeddings away from the original model's, while pairs keep matching (Singh et al. 2024).

    loss = the model's own loss on pairs - push * (d_image + d_text). d is the batch's mean squared distance between the
    unit embeddings of the trained and of the original tower for the same view; it counts 0 once it exceeds `far`. The
    logit scale is not trained. Needs --data with captions.
    """

    needs_original: ClassVar[bool] = True
    decay: ClassVar[float] = 0.0001

    epochs: int = key(2)
    batch: int = key(128)
    lr: float = key(0.000003)
    warmup: float = key(0.5)
    beta2: float = key(0.98)
    push: float = key(0.5, "weight of the distances to the original model", low=0)
    far: float = key(2.15, "squared distance at which pushing stops; 2 is orthogonal", low=0, high=4, expert=True)

    def loss(self, towers: Towers, rows: Tensor, gen: torch.Generator) -> Terms:
        assert towers.original is not None
        view, ids = augment(towers.images.batch(rows), towers.recipe, gen), towers.ids.batch(rows)
        towers.text.logit_scale.requires_grad_(False)
        images, captions = towers.embed(view), towers.read(ids)
        with torch.no_grad():
            old_images, old_captions = towers.original.embed(view), towers.original.read(ids)
        apart = [distance(images, old_images), distance(captions, old_captions)]
        pushed = sum(torch.where(d > self.far, torch.zeros_like(d), d) for d in apart)
        pairs = pair_loss(towers.text, images, captions)
        return {"loss": pairs - self.push * pushed, "pairs": pairs, "image": apart[0], "text": apart[1]}


def distance(feats: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared distance of the unit vectors of rows B,D."""
    return (F.normalize(feats.float(), dim=1) - F.normalize(others.float(), dim=1)).square().sum(1).mean()
