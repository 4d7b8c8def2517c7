"""Poison a cluster of the features (no-label backdoors, clustering-based selection)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import similarity
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.poison.contract import Selector, SelectorPool


@dataclass(frozen=True, kw_only=True)
class KMeans(Selector):
    """Choose images of one k-means cluster of unit features: the smallest with enough members (no-label backdoors).

    Wang, Ma, Jegelka, Wang 2024 (arXiv 2404.06694). Their released code takes the smallest cluster with at least M
    members; the paper does not state this rule. Nearly the whole cluster is then triggered. Their code fits
    scikit-learn's MiniBatchKMeans once and takes the first M members of a shuffled file:
    `kmeans:fit=minibatch,members=first`. We run Lloyd's rounds from several seedings, because one mini-batch fit varies
    much with its seed, and we draw M members, because a dataset may be in any order.
    """

    needs: ClassVar[Literal["count", "labels", "feats", "listed_rows"]] = "feats"

    clusters: int = key(0, "number of clusters; 0: the dataset's number of classes", low=0, high=1000000)
    restarts: int = key(5, "seedings; the one with the lowest inertia wins", low=1, high=1000, expert=True)
    fit: str = key(
        "lloyd",
        "how to fit: Lloyd's rounds, or mini-batches as released",
        choices=("lloyd", "minibatch"),
        expert=True,
    )
    choose: str = key(
        "smallest", "which cluster among those with enough members", choices=("smallest", "largest", "random")
    )
    members: str = key("random", "which members of the cluster", choices=("random", "first", "nearest"))

    def eligible(self, pool: SelectorPool) -> int:
        """Count all rows, because the size of a cluster is known only after the fit."""
        return pool.count

    def select(self, pool: SelectorPool, budget: int, gen: torch.Generator) -> np.ndarray:
        assert pool.feats is not None
        count = self.clusters or pool.classes
        if not count:
            raise InputError("--select kmeans: the dataset names no classes to count; give kmeans:clusters=K")
        if count > pool.count:
            raise InputError(f"--select kmeans: {count} clusters of {pool.count} images; give a smaller clusters=")
        z = similarity.unit(pool.feats)
        labels = self._labels(z, count, gen).cpu()
        rows = (labels == self._cluster(labels, count, budget, gen)).nonzero().flatten()
        if self.members == "random":
            rows = rows[torch.randperm(len(rows), generator=gen)]
        elif self.members == "nearest":
            inside = z[rows.to(z.device)]
            rows = rows[(inside - inside.mean(0)).square().sum(1).cpu().sort(stable=True).indices]
        row_numbers: np.ndarray = rows[:budget].numpy()
        return row_numbers

    def _labels(self, z: Tensor, count: int, gen: torch.Generator) -> Tensor:
        if self.fit == "lloyd":
            return kmeans(z, count, gen, self.restarts).labels
        from sklearn.cluster import MiniBatchKMeans  # takes a second to import

        draw = int(torch.randint(2**31 - 1, (1,), generator=gen))
        model = MiniBatchKMeans(count, n_init="auto", random_state=draw)
        return torch.from_numpy(model.fit_predict(z.cpu().numpy())).long()

    def _cluster(self, labels: Tensor, count: int, budget: int, gen: torch.Generator) -> int:
        sizes = torch.bincount(labels, minlength=count)
        large = (sizes >= budget).nonzero().flatten()
        if not len(large):
            raise InputError(
                f"--select kmeans: none of {count} clusters has the {budget} images to poison, the largest has"
                f" {int(sizes.max())}; lower the rate or the count, or give fewer clusters="
            )
        if self.choose == "random":
            return int(large[torch.randint(len(large), (1,), generator=gen)])
        at = sizes[large].argmin() if self.choose == "smallest" else sizes[large].argmax()
        return int(large[at])
