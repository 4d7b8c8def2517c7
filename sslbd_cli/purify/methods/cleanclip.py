"""CleanCLIP (Bansal et al., ICCV 2023): fine-tune both towers on clean pairs, with each tower's own contrast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.augment import augment
from sslbd_cli.core.train import Terms
from sslbd_cli.language.tower import SHARPEST, TextTower, pair_loss
from sslbd_cli.plugin import key
from sslbd_cli.purify.pairs import PairPurifier, Towers, varied


@dataclass(frozen=True, kw_only=True)
class CleanCLIP(PairPurifier):
    """Fine-tune a CLIP model on clean pairs so that each tower also recognises its own views (Bansal et al. 2023).

    loss = the model's own loss on pairs + inmodal * mean of two contrastive losses: images against their augmented
    views, captions against captions with words dropped and swapped. Needs --data with captions. The learning rate
    decides: with the published 1e-5, users report an ASR of 0.98 on an attack that 1e-6 removed on other models; a
    small model needs more. The authors' captions also get synonyms from a thesaurus.
    """

    epochs: int = key(10)
    inmodal: float = key(1.0, "weight of the contrast within each tower; 0: plain fine-tuning on pairs", low=0)
    words: float = key(0.1, "share of a caption's words to drop, and to move", low=0, high=0.9, expert=True)

    def loss(self, towers: Towers, rows: Tensor, gen: torch.Generator) -> Terms:
        batch, ids, text = towers.images.batch(rows), towers.ids.batch(rows), towers.text
        if text.logit_bias is None:
            with torch.no_grad():
                text.logit_scale.clamp_(max=SHARPEST)
        pixels = torch.cat([batch / 255, augment(batch, towers.recipe, gen)])
        images, image_views = towers.embed(pixels).chunk(2)
        captions, caption_views = towers.read(torch.cat([ids, varied(ids, text, self.words, gen)])).chunk(2)
        pairs = pair_loss(text, images, captions)
        own = (contrast(text, images, image_views) + contrast(text, captions, caption_views)) / 2
        return {"loss": pairs + self.inmodal * own, "pairs": pairs, "inmodal": own}


def contrast(text: TextTower, feats: Tensor, views: Tensor) -> Tensor:
    """Return the cross-entropy of each vector B,D with its own view among those of the batch, at the model's scale."""
    with torch.autocast(feats.device.type, enabled=False):
        cosines = F.normalize(feats.float(), dim=1) @ F.normalize(views.float(), dim=1).T
        return F.cross_entropy(text.logit_scale.exp() * cosines, torch.arange(len(feats), device=feats.device))
