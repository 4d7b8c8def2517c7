"""Local outliers: dimensionality-aware outlier detection and its relatives (backdoored samples, ICLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.features import embed_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.detect.outliers import neighbours, robust_z
from sslbd_cli.detect.pairs import caption_vectors, pair_vectors
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

TINY = 1e-6  # distance of unit features below which they are the same


@dataclass(frozen=True, kw_only=True)
class LocalOutlier(ImageDetector):
    """Flag images whose neighbourhood is sparser, or denser, than those of their neighbours (DAO, ICLR 2025).

    Published for poisoned image-text sets, where rare poison lies apart. d_k is the distance to the k-th neighbour, and
    LID is the maximum-likelihood local dimension, -1 / mean log(d_i / d_k). score=dao of an image x is the mean over
    its neighbours j of LID_j log(d_k(x) / d_k(j)); slof is the mean of d_k(x) / d_k(j), distance is log d_k(x), and lid
    is the dimension itself. Neighbours are searched among all images, or, with `batch=1024,k=16`, within random
    batches, as in the released code. If more than k of the images searched are poisoned, they are each other's
    neighbours.

    Contrastive learning on images does the opposite: it gathers poison in a tight cluster. side=dense reverses the sign
    of the score (ours; with score=distance it ranked the poison of a SimCLR encoder far better than any sparse score).
    The paper only ranks; the rule is ours: it flags scores more than z robust standard deviations above the median. The
    largest of 50,000 clean images was 9.4 (CIFAR-10, SimCLR). Distances are between unit features.

    of=pairs judges pairs of images and captions by a CLIP model: the squared distance of two pairs is the mean of those
    of their images and of their captions. of=captions judges the captions alone.
    """

    judges = "samples"
    cost = 1

    of: str = key("images", "what lies apart: images, captions, or pairs of both (CLIP models)",
                  choices=("images", "captions", "pairs"))  # fmt: skip
    k: int = key(16, "neighbours of an image", low=2, high=10000)
    score: str = key("dao", "kind of score", choices=("dao", "slof", "distance", "lid"))
    side: str = key("sparse", "suspicious neighbourhoods: sparse (published) or dense", choices=("sparse", "dense"))
    batch: int = key(0, "size of random batches that neighbours are searched in; 0: all images", low=0)
    z: float = key(12.0, "robust standard deviations above the median from which images are flagged", low=0)

    @property
    def reads_texts(self) -> bool:
        return self.of != "images"

    @property
    def reads_captions(self) -> bool:
        return self.of != "images"

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        count = len(evidence.images)
        batch = min(self.batch or count, count)
        if self.k >= batch:
            raise InputError(f"{self.name}: k={self.k} neighbours among {batch} images; lower k, or search more images")
        feats = self._feats(encoder, evidence, session)
        measures = torch.zeros(count, dtype=torch.float64)
        for rows in batches(count, batch, session.generator(self.name, "batches")):
            measures[rows] = self.measure(feats[rows.to(feats.device)]).double().cpu()
        scores = measures if self.side == "sparse" else -measures
        away = robust_z(scores)
        return Findings(
            Scores(scores.numpy(), flagged=(away > self.z).numpy()),
            search_space=f"images whose neighbourhood is {self.side} for where it lies: {self.score} of {self.k}"
            f" neighbours among {batch} images",
            summary={"k": self.k, "searched": batch, "farthest_z": float(away.max())},
        )

    def _feats(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Tensor:
        """Return unit vectors N,D of what is judged."""
        if self.of == "images":
            return unit(embed_once(encoder, evidence.images, session))
        if self.of == "captions":
            return caption_vectors(encoder, evidence, session)
        return unit(torch.cat(pair_vectors(encoder, evidence, session), dim=1))

    def measure(self, feats: Tensor) -> Tensor:
        """Score unit features n,D by their neighbourhoods, higher where these are sparser: float32 n."""
        apart, near = neighbours(feats, self.k)
        apart = apart.clamp(min=TINY)
        reach = apart[:, -1]
        if self.score == "distance":
            return reach.log()
        if self.score == "slof":
            return (reach[:, None] / reach[near]).mean(1)
        # neighbours at one distance would give an infinite dimension; that of the space is the largest possible
        lid = (-1 / (apart / reach[:, None]).log().mean(1).clamp(max=-1 / feats.shape[1])).float()
        if self.score == "lid":
            return lid
        return (lid[near] * (reach[:, None] / reach[near]).log()).mean(1)


def batches(count: int, batch: int, gen: torch.Generator) -> list[Tensor]:
    """Split `count` rows at random into batches of at least `batch` rows, of nearly equal size."""
    if batch == count:
        return [torch.arange(count)]
    return list(torch.randperm(count, generator=gen).tensor_split(count // batch))
