"""Poison an anchor image and its neighbours that contrast most with the rest (no-label backdoors)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import similarity
from sslbd_cli.plugin import key
from sslbd_cli.poison.contract import Selector, SelectorPool

#: arm -> weights of the similarity within the poisons and of the similarity to others.
ARMS = {"both": (1.0, -1.0), "positive": (1.0, 0.0), "negative": (0.0, -1.0)}


@dataclass(frozen=True, kw_only=True)
class Contrastive(Selector):
    """Choose an anchor image and its nearest neighbours by the largest contrastive similarity (no-label backdoors).

    Wang, Ma, Jegelka, Wang 2024 (arXiv 2404.06694). For M poisons P, their criterion TCS(P) is the sum of similarities
    within P minus the sum of similarities between P and all others. Every image is tried as an anchor; P is then its M
    nearest images, itself included. `anchor` is the released code: an anchor's similarity to its M nearest minus that
    to the next M. `total` is the paper's exact sum, for the anchors that `anchor` ranks highest. The arms are the
    paper's ablation: `positive` drops the negative term (released as conp), `negative` the positive one (conn).
    """

    needs: ClassVar[Literal["count", "labels", "feats", "listed_rows"]] = "feats"
    limit: ClassVar[str] = "at most half of the images: the next M neighbours are the contrast to the nearest M"

    arm: str = key("both", "terms of the criterion", choices=("both", "positive", "negative"))
    criterion: str = key(
        "anchor", "criterion to maximise: as released, or the paper's sum", choices=("anchor", "total")
    )
    shortlist: int = key(100, "criterion=total: number of anchors to compute it for", low=1, high=1000000, expert=True)

    def eligible(self, pool: SelectorPool) -> int:
        return pool.count if self.arm == "positive" else pool.count // 2

    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        assert pool.feats is not None
        z = similarity.unit(pool.feats)
        scores = similarity.anchor_scores(z, budget, *ARMS[self.arm])
        anchor = int(scores.argmax()) if self.criterion == "anchor" else self._best(z, scores, budget)
        rows: np.ndarray = similarity.nearest(z, anchor, budget).numpy()
        return rows

    def _best(self, z: Tensor, scores: Tensor, budget: int) -> int:
        """Return the anchor with the largest total among those with the best scores."""
        inside, outside = ARMS[self.arm]
        total = z.sum(0)

        def tcs(anchor: int) -> float:
            within, across = similarity.within_and_across(z, similarity.nearest(z, anchor, budget), total)
            return inside * within + outside * across

        anchors: list[int] = scores.sort(descending=True, stable=True).indices[: self.shortlist].tolist()
        return max(anchors, key=tcs)
