"""What a finished encoder does to clean and to triggered images, and how triggered embeddings lie among clean ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.badencoder.scene import is_text, pull
from sslbd_cli.core.features import embed
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.triggers._contract import Trigger

MEASURED = 2048  # shadow images to measure the outcome on
PROJECTIONS = 50  # directions of the sliced distance: the default of the library in DRUPE's code


@dataclass(frozen=True)
class Effect:
    """The finished encoder's mean cosines, and the distribution of its triggered embeddings.

    cosines: utility, between clean images' embeddings and the clean encoder's; effectiveness, between triggered images
    and references, of the worst trigger. spread, of the worst trigger: concentration; clean_concentration, the same of
    clean embeddings; swd_ratio, the distance of triggered from clean embeddings in units of the distance between two
    clusters of clean ones (DRUPE's measure). One shadow image has no spread.
    """

    cosines: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)


def measure(clean: ImageEncoder, victim: ImageEncoder, plot: Plot, session: Session, nearest: bool = False) -> Effect:
    """Measure a finished encoder on at most 2,048 shadow images.

    nearest: effectiveness counts each image's nearest reference, not all of them.
    """
    images, gen = plot.shadow[:MEASURED], session.generator("outcome")

    def feats(net: ImageEncoder, pixels: np.ndarray | Tensor, trigger: Trigger | None = None) -> Tensor:
        change = None if trigger is None else (lambda batch: trigger(batch, gen).images)
        return embed(net, pixels, session, change)

    plain = feats(victim, images)
    stamped = [feats(victim, images, trigger) for trigger in plot.triggers]
    goals = [F.normalize(r.to(plain.device) if is_text(r) else feats(victim, r), dim=1) for r in plot.references]
    pulls = [pull(F.normalize(s, dim=1) @ g.T, nearest) for s, g in zip(stamped, goals, strict=True)]
    utility = F.cosine_similarity(plain, feats(clean, images), dim=1).mean()
    cosines = {"utility": float(utility), "effectiveness": float(min(pulls))}
    if len(images) < 2:
        return Effect(cosines)
    ratios = swd_ratios(plain, stamped, session.generator("clusters"), session.generator("swd", device=plain.device))
    concentrations = [float(concentration(s)) for s in stamped]
    spread = {"concentration": max(concentrations), "clean_concentration": float(concentration(plain))}
    return Effect(cosines, spread | {"swd_ratio": max(ratios)})


def concentration(feats: Tensor) -> Tensor:
    """Return the mean cosine between different rows of N,D.

    DRUPE's code intends to leave out the diagonal but does not, which adds about 1/N.
    """
    return pair_cosine(F.normalize(feats, dim=1))


def sliced_wasserstein(one: Tensor, other: Tensor, gen: torch.Generator, projections: int = PROJECTIONS) -> Tensor:
    """Return the sliced 2-Wasserstein distance of two samples N,D of equal size (Bonneel et al. 2015).

    gen draws the directions on the samples' device. One product projects on all of them, and one batch sorts them.
    """
    directions = F.normalize(torch.randn(one.shape[1], projections, generator=gen, device=one.device), dim=0)
    sorts = [(rows.float() @ directions).sort(0).values for rows in (one, other)]
    return (sorts[0] - sorts[1]).square().mean().clamp_min(1e-12).sqrt()  # the root has no gradient at zero


def swd_ratios(plain: Tensor, stamped: list[Tensor], gen: torch.Generator, directions: torch.Generator) -> list[float]:
    """Return, for each set of triggered features, its sliced distance from clean features over that of their clusters.

    All samples have the size of the smaller cluster, because the distance of two samples falls with their size. gen is
    a CPU generator; `directions` is on the features' device.
    """
    clusters = kmeans(plain, min(2, len(plain)), gen, restarts=4).labels
    first, second = plain[clusters == 0], plain[clusters == 1]
    size = max(1, min(len(first), len(second)))

    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=gen)[:size].to(rows.device)]

    scale = sliced_wasserstein(some(first), some(second), directions) if len(second) else plain.new_tensor(1.0)
    return [float(sliced_wasserstein(some(s), some(plain), directions) / scale) for s in stamped]
