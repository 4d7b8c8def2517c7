"""Search a training set for images with a patch that moves other images (PatchSearch, Tejankar et al., CVPR 2023).

Each round tries a few images of each cluster: a localiser chooses a window, and the flip test scores its content. Then
the clusters whose best patch scores lowest are dropped, until fewer than four are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import send
from sslbd_cli.core.watch import Ticker
from sslbd_cli.detect.patch_scan.lens import FeatureClusters, FlipTest, crop
from sslbd_cli.detect.patch_scan.localise import Localiser

FIRST = 128  # test images that every candidate is tried on; the best eighth is tried on all
SETTLED = 40  # least number tried on all: more than the report shows or the poison classifier learns


@dataclass(frozen=True)
class Candidates:
    """Images that were tried, the best first. rows: int64 C; windows: int64 C,4; scores: float32 C.

    A score is the share of test images that the window's content moves into the image's own cluster.
    """

    rows: Tensor
    windows: Tensor
    scores: Tensor


@dataclass(frozen=True)
class SearchSchedule:
    """How many images of a cluster are tried per round, and the share of clusters dropped after it.

    exhaustive: every candidate is tried on every test image.
    """

    per_cluster: int
    prune: float
    exhaustive: bool


def plan_search(clusters: int, schedule: SearchSchedule) -> tuple[int, int]:
    """Return the rounds of a search and the largest number of images that it tries."""
    live, rounds, images = clusters, 0, 0
    while live:
        rounds, images = rounds + 1, images + live * schedule.per_cluster
        live = _count_left(live, schedule)
    return rounds, images


def _count_left(live: int, schedule: SearchSchedule) -> int:
    """Return how many clusters remain; none if the share to drop is less than one cluster, as in the released code."""
    drop = int(schedule.prune * live)
    return live - drop if drop else 0


def search(
    clusters: FeatureClusters,
    localiser: Localiser,
    test: FlipTest,
    schedule: SearchSchedule,
    gen: torch.Generator,
    ticker: Ticker,
) -> Candidates:
    """Try images of the clusters in rounds."""
    count = len(test) if schedule.exhaustive else min(FIRST, len(test))
    turns = _turns(clusters, gen)
    labels = clusters.labels.cpu()
    live = torch.arange(len(clusters.centers))
    best = torch.full((len(live),), -torch.inf)
    tried_parts: list[Candidates] = []
    start = 0
    while len(live):
        rows = torch.cat([turns[k][start : start + schedule.per_cluster] for k in live.tolist()])
        if len(rows):
            windows = localiser(rows)
            scores = score(localiser, test, rows, windows, count)
            best.scatter_reduce_(0, labels[rows], scores, "amax")
            tried_parts.append(Candidates(rows, windows, scores))
        ticker.advance(len(rows))
        start += schedule.per_cluster
        best_first = live[torch.argsort(best[live], descending=True, stable=True)]
        live = best_first[: _count_left(len(live), schedule)]
    names = ("rows", "windows", "scores")
    candidates = Candidates(*(torch.cat([getattr(part, name) for part in tried_parts]) for name in names))
    if not schedule.exhaustive:
        candidates = _settle(localiser, test, candidates)
    order = torch.argsort(candidates.scores, descending=True, stable=True)
    return Candidates(candidates.rows[order], candidates.windows[order], candidates.scores[order])


def score(localiser: Localiser, test: FlipTest, rows: Tensor, windows: Tensor, count: int) -> Tensor:
    """Score windows int64 B,4 of images (rows, int64 B) by the flip test on `count` test images: float32 B."""
    parts = (torch.split(each, localiser.lens.batch) for each in (rows, windows))
    patches = torch.cat([crop(localiser.images(some), at) for some, at in zip(*parts, strict=True)])
    own = test.clusters.labels[send(rows, test.clusters.labels.device)]
    return test.flips(patches, own, count).cpu()


def _turns(clusters: FeatureClusters, gen: torch.Generator) -> list[Tensor]:
    """Return each cluster's members in random order."""
    order = torch.randperm(len(clusters.labels), generator=gen)
    by_cluster = order[torch.argsort(clusters.labels.cpu()[order], stable=True)]
    return list(torch.split(by_cluster, clusters.sizes().tolist()))


def _settle(localiser: Localiser, test: FlipTest, candidates: Candidates) -> Candidates:
    """Score the best eighth on all test images. The others keep their first scores, but rank below the best eighth."""
    order = torch.argsort(candidates.scores, descending=True, stable=True)
    count = max(SETTLED, -(-len(order) // 8))
    again, rest = order[:count], order[count:]
    whole = score(localiser, test, candidates.rows[again], candidates.windows[again], len(test))
    scores = candidates.scores.clone()
    scores[again] = whole
    scores[rest] = scores[rest].minimum(whole.min())
    return Candidates(candidates.rows, candidates.windows, scores)
