"""k-means: k-means++ seeding, Lloyd's rounds in blocks, restarts. One seed gives one result on any device.

A round takes one matrix product per block of rows, whose largest score names the nearest center, and one sum per center
while the block is in the cache. No array of shape N,K is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import send
from sslbd_cli.core.loader import at_once
from sslbd_cli.errors import InputError

SAMPLE = 1 << 14  # rows to seed centers from; a pass over all rows per center would cost more than Lloyd's rounds
ONE_BY_ONE = 128  # largest number of seeding passes; for more centers, each pass draws several


@dataclass(frozen=True)
class Clusters:
    """Clusters of rows. centers: float32 K,D; labels: int64 N, the nearest center of each row.

    inertia: sum of squared distances to the nearest center; rounds: number of updates of the centers.
    """

    centers: Tensor
    labels: Tensor
    inertia: float
    rounds: int

    def sizes(self) -> Tensor:
        """Return the number of rows per cluster, int64 K. With fewer than K distinct rows, some are 0."""
        return _counts(self.labels, len(self.centers))


@torch.no_grad()
def kmeans(
    feats: Tensor, clusters: int, gen: torch.Generator, restarts: int = 1, rounds: int = 100, half: bool = False
) -> Clusters:
    """Cluster feats float32 N,D on their device. Return the run with the lowest inertia of `restarts`; first on ties.

    gen is a CPU generator. half: compare rows with centers in bf16, for devices that are fast at it; sums, the last
    assignment and the inertia stay fp32. Raises InputError unless 1 <= clusters <= N.
    """
    if not 1 <= clusters <= len(feats):
        raise InputError(f"{clusters} clusters of {len(feats)} rows: give 1 to {len(feats)}")
    runs = (lloyd(feats, seed_centers(feats, clusters, gen), rounds, half=half) for _ in range(restarts))
    return min(runs, key=lambda run: run.inertia)


@torch.no_grad()
def seed_centers(feats: Tensor, clusters: int, gen: torch.Generator) -> Tensor:
    """Draw initial centers K,D by k-means++ (Arthur & Vassilvitskii 2007), with probability by squared distance.

    They are drawn from a sample of the rows. Up to ONE_BY_ONE centers are drawn one by one, each the best of 2 + ln K
    candidates (the greedy form). More centers are drawn several per pass; Lloyd's rounds correct the loss.
    """
    if len(feats) > (enough := max(SAMPLE, 16 * clusters)):
        rows = torch.randperm(len(feats), generator=gen)[:enough]
        feats = feats[send(rows, feats.device)]
    squares = feats.square().sum(1)
    center_rows = send(torch.randint(len(feats), (1,), generator=gen), feats.device)  # stays there: no one waits
    nearest = _squared_distances(feats, squares, center_rows)[:, 0]
    while len(center_rows) < clusters:
        several = min(math.ceil(clusters / ONE_BY_ONE), clusters - len(center_rows))
        drawn_rows = _draw(nearest, several if several > 1 else 2 + int(math.log(clusters)), gen)
        shorter = torch.minimum(nearest[:, None], _squared_distances(feats, squares, drawn_rows))  # N,candidates
        if several > 1:
            nearest = shorter.amin(1)
        else:
            best = shorter.sum(0).argmin()[None]
            nearest, drawn_rows = shorter.index_select(1, best)[:, 0], drawn_rows[best]
        center_rows = torch.cat([center_rows, drawn_rows])
    return feats[center_rows]


def _squared_distances(feats: Tensor, squares: Tensor, rows: Tensor) -> Tensor:
    products = feats @ feats[rows].T
    return products.mul_(-2).add_(squares[:, None]).add_(squares[rows]).clamp_(min=0)


def _draw(weights: Tensor, count: int, gen: torch.Generator) -> Tensor:
    """Draw rows, int64 count, in proportion to their weights N."""
    total = weights.cumsum(0)
    places = send(torch.rand(count, generator=gen), weights.device).to(weights.dtype) * total[-1]
    return torch.searchsorted(total, places, right=True).clamp_(max=len(weights) - 1)


@torch.no_grad()
def lloyd(feats: Tensor, centers: Tensor, rounds: int = 100, tolerance: float = 1e-4, half: bool = False) -> Clusters:
    """Move centers K,D to the means of their rows until they converge (scikit-learn's rule), at most `rounds` times.

    They have converged if the sum of their squared shifts is at most `tolerance` times the features' mean variance. A
    center without rows moves to a row that is farthest from its own center.
    """
    centers = centers.clone()
    middle = feats.mean(0)
    compared = (feats - middle).bfloat16() if half else feats  # centred features lose less in bf16
    variance = float(torch.linalg.vector_norm(feats)) ** 2 / len(feats) - float(middle @ middle)  # of all dimensions
    rest = tolerance * variance / feats.shape[1]
    labels = torch.full((len(feats),), len(centers), device=feats.device)  # K: no center yet
    sums = feats.new_zeros(len(centers) + 1, feats.shape[1])  # the last row is for rows without a center
    done, shift = 0, 1.0
    while done < rounds:
        done += 1
        _round(feats, compared, centers if compared is feats else centers - middle, labels, sums)
        counts = _counts(labels, len(centers))
        means = sums[:-1] / counts.clamp(min=1)[:, None]
        empty = counts == 0
        shift, empties = _read((means - centers).square().sum(), empty.sum())
        if empties:
            means[empty] = _farthest(feats, centers, labels, int(empties))
            shift = float((means - centers).square().sum())
        centers = means
        if shift <= rest and compared is feats:
            break
        if shift <= rest:
            compared = feats  # bf16 has converged, so the last rounds are exact
    if shift or compared is not feats:  # the centers have moved since the last comparison
        _round(feats, feats, centers, labels, None)
    return Clusters(centers, labels, float(_spread(feats, centers, labels).cpu().double().sum()), done)


def _round(feats: Tensor, compared: Tensor, centers: Tensor, labels: Tensor, sums: Tensor | None) -> None:
    """Write each row's nearest center into labels, int64 N, and the sum of each center's rows into sums K+1,D.

    |x - c|^2 is least where x.c - |c|^2 / 2 is largest. The second term stays fp32, because its rounding would favour
    the same centers in every row. On the CPU, numpy's argmax is several times faster than torch's, and only rows that
    change their center move between the sums. On an accelerator, a product with one-hot rows sums in a fixed order,
    unlike atomic additions.
    """
    on_cpu = feats.device.type == "cpu"
    weights, bias = centers.T.to(compared.dtype), -0.5 * centers.square().sum(1)
    step = at_once("center scores", feats.device.type, max(len(centers), feats.shape[1]))
    if sums is not None and not on_cpu:
        sums.zero_()
    for start in range(0, len(feats), step):
        part = slice(start, start + step)
        scores = (compared[part] @ weights).float().add_(bias)
        near = torch.from_numpy(scores.numpy().argmax(1)) if on_cpu else scores.argmax(1)
        if sums is not None and on_cpu:
            changed = (near != labels[part]).nonzero()[:, 0]
            rows = feats[part][changed]
            sums.index_add_(0, near[changed], rows).index_add_(0, labels[part][changed], rows, alpha=-1)
        elif sums is not None:
            sums[:-1].addmm_(torch.nn.functional.one_hot(near, len(centers)).to(feats).T, feats[part])
        labels[part] = near


def _counts(labels: Tensor, count: int) -> Tensor:
    """Return how many labels there are of each of `count` numbers, int64. A host waits for bincount on a GPU."""
    return labels.new_zeros(count).scatter_add_(0, labels, torch.ones_like(labels))


def _read(*values: Tensor) -> list[float]:
    """Read several numbers at once, so that the host waits for the device only once."""
    numbers: list[float] = torch.stack([value.to(values[0].dtype) for value in values]).tolist()
    return numbers


def _farthest(feats: Tensor, centers: Tensor, labels: Tensor, count: int) -> Tensor:
    return feats[_spread(feats, centers, labels).topk(count).indices]


def _spread(feats: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Return each row's squared distance to its center, N, without the cancellation that products would cause."""
    step = at_once("center scores", feats.device.type, feats.shape[1])
    parts = zip(torch.split(feats, step), torch.split(labels, step), strict=True)
    return torch.cat([(rows - centers[near]).square().sum(1) for rows, near in parts])
