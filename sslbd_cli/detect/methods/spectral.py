"""Spectral signatures (Tran, Li, Madry, NeurIPS 2018) on pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.features import embed_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.detect.outliers import LEAST, doubt_clusters, pseudo_labels, robust_z
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Spectral(ImageDetector):
    """Flag images far out along the main direction of their cluster (spectral signatures, NeurIPS 2018).

    Tran, Li, Madry: a class with a few poisoned images varies most between these and the others. So an image scores
    (z.v)^2, where v is the first right singular vector of the class's centred features. Without labels, clusters of
    unit features stand for the classes; clusters=1 is all images at once. Contrastive learning often gathers its poison
    in a tight cluster of its own, where v tells nothing.

    The default rule is ours: it flags projections more than z robust standard deviations from the cluster's median. The
    largest of 50,000 clean images was 4.5 (CIFAR-10, SimCLR). Clusters of fewer than 20 images are not judged. The
    published rule removes a fixed share of each class (1.5 times the expected poison; the upper 15 % in BackdoorBench),
    of a clean set, too: `spectral:rule=share`, for `sslbd purify --method filter`. Its flags are no evidence, so its
    verdict is always `nothing found`. compat=authors projects features without centring them, as BackdoorBench does;
    the mean of the cluster then outweighs the differences.
    """

    judges = "samples"
    cost = 1

    clusters: int = key(100, "clusters of unit features that stand for the classes; 1: all images", low=1)
    rule: str = key("robust", "robust: by z; share: a fixed share of each cluster, as published",
                    choices=("robust", "share"))  # fmt: skip
    z: float = key(5.0, "robust standard deviations from the median beyond which rule=robust flags", low=0)
    share: float = key(0.15, "share of each cluster that rule=share flags", low=0, high=1)
    compat: str = key(
        "none", "authors: project features without centring them", choices=("none", "authors"), expert=True
    )

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        z = unit(embed_once(encoder, evidence.images, session))
        scores = torch.zeros(len(z), dtype=torch.float64)
        flagged = torch.zeros(len(z), dtype=torch.bool)
        farthest, clusters_flagged = 0.0, 0
        clusters = pseudo_labels(z, self.clusters, session.seed, self.name)
        for rows in clusters:
            if len(rows) < (1 if self.rule == "share" else LEAST):
                continue
            along = self.project(z[rows]).double().cpu()
            away = robust_z(along).abs()
            at = rows.cpu()
            scores[at], flagged[at] = along.square(), self._decide(along.square(), away)
            farthest, clusters_flagged = max(farthest, float(away.max())), clusters_flagged + int(flagged[at].any())
        return Findings(
            Scores(scores.numpy(), flagged=flagged.numpy(), is_evidence=self.rule != "share"),
            search_space=f"images far out along the first principal direction of their cluster, of {self.clusters};"
            " no poison that fills a cluster or varies as clean images do",
            doubt="" if self.rule == "share" or flagged.any() else doubt_clusters(clusters, self.name),
            summary={"clusters": self.clusters, "clusters_flagged": clusters_flagged, "farthest_z": farthest},
        )

    def project(self, feats: Tensor) -> Tensor:
        """Return how far features n,D of one cluster lie along its first principal direction: n."""
        middle = feats.mean(0)
        direction = torch.linalg.svd(feats - middle, full_matrices=False).Vh[0]
        along: Tensor = (feats if self.compat == "authors" else feats - middle) @ direction
        return along

    def _decide(self, scores: Tensor, away: Tensor) -> Tensor:
        if self.rule == "robust":
            return away > self.z
        is_in_share = torch.zeros(len(scores), dtype=torch.bool)
        is_in_share[scores.argsort(descending=True, stable=True)[: round(self.share * len(scores))]] = True
        return is_in_share
