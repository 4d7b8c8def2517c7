"""Tools that detectors share: pseudo-labels, neighbours, and measures of how far a value lies out."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.loader import at_once
from sslbd_cli.core.similarity import nearest_rows
from sslbd_cli.errors import InputError

SAMPLE = 2048  # rows of a silhouette; its error is then below 0.01
LEAST = 20  # a smaller cluster is not judged: its spread and its parts are too uncertain
ROUNDING = 1e-6  # equal unit features differ by a tenth of this in float32
NORMAL_MAD, NORMAL_MEAN = 1.4826, 1.2533  # standard deviation per median, and per mean, absolute deviation (normal)


@torch.no_grad()
def pseudo_labels(z: Tensor, clusters: int, seed: int, owner: str) -> list[Tensor]:
    """Cluster unit features float32 N,D and return each cluster's rows, int64, ascending, on the device of z.

    A single cluster holds all rows. Raises InputError in the name of `owner` for fewer rows than clusters.
    """
    if clusters > len(z):
        raise InputError(f"{owner}: {clusters} clusters of {len(z)} images; give clusters= of at most {len(z)}")
    if clusters == 1:
        return [torch.arange(len(z), device=z.device)]
    groups = kmeans(z, clusters, generator(seed, owner, "clusters"))
    order = torch.sort(groups.labels, stable=True).indices
    return list(torch.split(order, groups.sizes().tolist()))


def doubt_clusters(clusters: list[Tensor], owner: str) -> str:
    """Return the doubt if most images are in clusters of fewer than LEAST, which are not judged; else empty."""
    sizes = [len(rows) for rows in clusters]
    judged_count = sum(size for size in sizes if size >= LEAST)
    if judged_count * 2 >= sum(sizes):
        return ""
    return (
        f"{owner}: {judged_count} of {sum(sizes)} images are in clusters of at least {LEAST}; give fewer clusters="
        f" ({max(1, sum(sizes) // (2 * LEAST))}, say) or more images"
    )


def robust_z(values: Tensor) -> Tensor:
    """Return how many standard deviations values N lie above their median, float64 N, all finite.

    The deviation is 1.4826 times the median absolute deviation (exact for a normal distribution), which outliers hardly
    move. If more than half of the values are equal, it is 1.2533 times the mean absolute deviation. The values come
    from unit features, so differences of the size of rounding errors count as none.
    """
    away = values.double() - values.double().median()
    scale = NORMAL_MAD * away.abs().median()
    if float(scale) <= ROUNDING:
        scale = NORMAL_MEAN * away.abs().mean()
    return away / scale if float(scale) > ROUNDING else torch.zeros_like(away)


def anomaly_index(sizes: np.ndarray, double: bool = False) -> np.ndarray:
    """Return how far each size lies below the median, in deviations of 1.4826 MAD (Neural Cleanse): float64 N.

    Returns zeros if the MAD is zero. double: scale the MAD twice, by 1.4826 / 0.6745, as SSL-Cleanse's code does.
    """
    away = np.median(sizes) - np.asarray(sizes, np.float64)
    scale = NORMAL_MAD * np.median(np.abs(away)) / (0.6745 if double else 1)
    return away / scale if scale > 0 else np.zeros_like(away)


def shrinkage(sizes: np.ndarray) -> np.ndarray:
    """Return how far each size lies below the median in powers of e: log(median / size), float64 N."""
    sizes = np.asarray(sizes, np.float64)
    least = max(1e-9 * float(sizes.max()), np.finfo(float).tiny)
    shrinkages: np.ndarray = np.log(max(float(np.median(sizes)), least) / np.maximum(sizes, least))
    return shrinkages


@torch.no_grad()
def neighbours(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest other rows of unit features z N,D: distances float32 N,count, ascending, and rows int64.

    Inner products find the neighbours. Their distances are computed from differences, where nothing cancels.
    """
    step = at_once("neighbour similarities", z.device.type, len(z))
    _, near = nearest_rows(z, z, count, step, others=True)
    step = at_once("neighbour similarities", each=count * z.shape[1])  # the features need no more memory
    parts = zip(torch.split(z, step), torch.split(near, step), strict=True)
    apart = torch.cat([(rows[:, None] - z[at]).norm(dim=2) for rows, at in parts])
    order = apart.sort(dim=1, stable=True)
    return order.values, near.gather(1, order.indices)


@torch.no_grad()
def silhouette(feats: Tensor, second: Tensor, gen: torch.Generator) -> float:
    """Return the mean silhouette (Rousseeuw 1987) of features N,D in two parts; 0 if a part is empty.

    second: bool N, the second part. Of many rows, a random sample is used. gen: a CPU generator.
    """
    if len(feats) > SAMPLE:
        rows = torch.randperm(len(feats), generator=gen)[:SAMPLE].to(feats.device)
        feats, second = feats[rows], second[rows]
    sizes = int(second.sum()), int((~second).sum())
    if len(feats) < 3 or min(sizes) == 0:
        return 0.0
    return float(silhouette_score(feats.cpu().numpy(), second.cpu().numpy()))
