"""SSL-Cleanse (Zheng et al., ECCV 2024): a trigger for each cluster of the embeddings, and the outlier among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.device import generator, send
from sslbd_cli.core.features import embed, embed_once
from sslbd_cli.core.kmeans import Clusters, kmeans
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Clues, EncoderDetector, FoundTrigger, Load, Opinion, Pictures
from sslbd_cli.detect.inversion.effort import USUAL_COUNT, Pace, pace_for
from sslbd_cli.detect.inversion.inversion import BARS, Course, Weight, invert, smallest
from sslbd_cli.detect.inversion.patches import Patches
from sslbd_cli.detect.inversion.problem import Objective
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._found import Witness

# --- the knee of a curve: beyond this number, more clusters explain little


def knee(numbers: np.ndarray, errors: np.ndarray, window: int = 3) -> int:
    """Return the index of the knee of errors float N at ascending numbers float N (Kneedle, Satopaa et al. 2011).

    The curve is smoothed by a sliding mean (shorter at the ends), and both axes are scaled to [0,1]. The knee is the
    point farthest below the chord from first to last point. A curve that does not fall has its knee at the first point.
    """
    half = window // 2
    smooth = np.array([errors[max(0, i - half) : i + half + 1].mean() for i in range(len(errors))])
    smooth[[0, -1]] = errors[[0, -1]]  # the chord joins the ends as they are
    x = (numbers - numbers[0]) / max(numbers[-1] - numbers[0], 1e-12)
    fall = smooth[0] - smooth[-1]
    if fall <= 0:
        return 0
    return int(np.argmax(1 - x - (smooth - smooth[-1]) / fall))


BRISK_STALE = 25  # rounds without a smaller success after which a candidate ends, on images above 64 pixels
BRISK_WEIGHT = 10  # in the few rounds on images above 64 pixels, the size weighs so much more
LEAST = 4  # least number of triggers among which one can be an outlier
NUMBERS = (
    2,
    4,
    6,
    8,
    10,
    12,
    14,
    16,
    18,
    20,
    22,
    24,
    26,
    28,
)  # numbers of clusters that are tried (from the authors' notebook)


@dataclass(frozen=True, kw_only=True)
class SSLCleanse(EncoderDetector):
    """Search for the smallest patch that moves all images to one cluster, for each cluster (SSL-Cleanse, ECCV 2024).

    The embeddings are clustered by k-means, with K from 2 to 28 at the knee of the summed squared errors (smoothed by a
    sliding window, as in the paper; the released code asks for K). For each cluster a mask and a pattern are optimised
    so that 99 % of the images of other clusters come nearest to its centre while the mean of the mask, the size, is
    small. A cluster whose size is far below the median is the target. The statistic is log(median / size) of the
    smallest size; above 1 the verdict is found. index=mad is the published statistic, (median - size) / (1.4826 MAD),
    found above 2. With K near 10 the MAD varies by chance, and a backdoor widens it. The method expects a patch whose
    target is a cluster. Clean encoders as --baseline tell more than the threshold.

    As published: the loss is 2 - 2 cos to the target; Adam at 0.1; the weight of the size is 0 at first, `weight` after
    5 successful rounds, then multiplied or divided by 1.5. Ours: all clusters are one batch; the size is the mean of
    the mask. compat=authors takes the mean of mask times pattern, for which black pixels are free, and index=mad with
    the MAD scaled twice, so that the index is 0.6745 times ours (their code has no threshold; 2 here is 1.35 there).
    The target is the centre (published: a random member or the centre); a round is `minibatches` (published: an epoch);
    held-out images.

    Above 64 pixels, all clusters share the pixels that decree's search sees at 32 pixels: at 224, ten clusters get 49
    steps of 8 images each. There a round is one step, weights change after 2 rounds instead of 5, the first weight is
    ten times as high, and mask and pattern are 56 x 56 free cells, enlarged bilinearly.
    """

    clusters: int = key(0, "clusters of the embeddings; 0: at the knee", low=0, high=1000)
    rounds: int = key(
        0, "rounds at most; each ends with a check of success; 0: by size (published: 1000 epochs)", low=0
    )
    minibatches: int = key(0, "batches per round; 0: 6 up to 64 pixels, 1 above", low=0, expert=True)
    batch: int = key(0, "images per batch; 0: 32 up to 64 pixels, fewer above", low=0)
    lr: float = key(0.0, "learning rate of Adam; 0: 0.1 up to 64 pixels (published), 0.3 above", low=0)
    weight: float = key(0.1, "weight of the size after the first successes", low=0)
    success: float = key(
        0.99, "a round succeeds if a larger share moves to the cluster", low=0.1, high=0.9999, expert=True
    )
    index: str = key("ratio", "how far the smallest is below the median: ratio (logarithm) or mad (published)",
                     choices=("ratio", "mad"))  # fmt: skip
    threshold: float = key(0.0, "found above this index; 0: 1 for ratio, 2 for mad (published)", low=0)
    compat: str = key(
        "none", "authors: size and MAD (index=mad) of the released code", choices=("none", "authors"), expert=True
    )

    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        parts, knee_arrays = self._clusters(embed_once(encoder, clues.images, session).clone(), session.seed)
        goals, count = F.normalize(parts.centers, dim=1), len(parts.centers)
        authors = self.compat == "authors"
        index = "mad" if authors else self.index
        gen = session.generator("ssl cleanse starts")
        space = Patches(count, encoder.size, gen, session.device, by_pattern=authors)
        pace = self._pace(encoder.size, count)
        candidates = invert(encoder, session.pool(clues.images), space, to_cluster(parts), self._course(pace), session)
        outlier = smallest(candidates, "clusters", LEAST, index, authors, self.success if pace.is_brisk else None)
        target = outlier.target
        trigger = None
        if outlier.is_any:
            witness = candidates.witness(target)
            trigger = FoundTrigger(witness, success_of(witness, encoder, clues, parts.centers, target, session))
        return Opinion(
            statistic=float(outlier.index[target]),
            threshold=self.threshold or BARS[index],
            search_space=f"for each of {count} clusters of the embeddings, one opaque patch or mask that takes"
            f" {self.success:.0%} of the other images to it",
            doubt=outlier.doubt,
            trigger=trigger,
            pictures=Pictures(
                candidates.pictures(clues.held_out_images[0]),
                arrays=knee_arrays | candidates.arrays(outlier.index) | {"witness/target": goals[target].cpu().numpy()},
            ),
            summary=outlier.summary
            | {
                "clusters": count,
                "target_cluster": target if outlier.is_any else None,
                "target_images": int(parts.sizes()[target]) if outlier.is_any else None,
            },
        )

    def load(self, judged: int, aux: int, side: int) -> Load:
        count = self.clusters or USUAL_COUNT
        return Load(judged, gradients=count * self._pace(side, count).images)

    def _pace(self, side: int, clusters: int) -> Pace:
        return pace_for(side, clusters, Pace(self.rounds, self.minibatches, self.batch, self.lr))

    def _clusters(self, feats: Tensor, seed: int) -> tuple[Clusters, dict[str, np.ndarray]]:
        """Cluster the embeddings. The arrays are the errors of every number of clusters tried."""
        if self.clusters:
            if not 2 <= self.clusters <= len(feats) // 2:
                raise InputError(
                    f"ssl-cleanse: clusters={self.clusters} of {len(feats)} images: give 2 or more, of 2 each"
                )
            return kmeans(feats, self.clusters, generator(seed, "ssl cleanse clusters"), restarts=10), {}
        numbers = [number for number in NUMBERS if number <= len(feats) // 2]
        runs = [
            kmeans(feats, number, generator(seed, "ssl cleanse clusters", number), restarts=4) for number in numbers
        ]
        errors = np.array([run.inertia for run in runs])
        best_run = runs[max(knee(np.array(numbers, np.float64), errors), numbers.index(LEAST))]
        return best_run, {"knee/clusters": np.array(numbers), "knee/errors": errors}

    def _course(self, pace: Pace) -> Course:
        start = self.weight * (BRISK_WEIGHT if pace.is_brisk else 1)
        weight = Weight(start=start, late=True, up=1.5, down=1.5, patience=pace.patience)
        return Course(
            rounds=pace.rounds, steps=pace.minibatches, batch=pace.batch, bar=self.success, rates=((0, pace.lr),),
            weight=weight, stale=BRISK_STALE if pace.is_brisk else 10, gain=0.99, both_ways=True, give_up=50,
        )  # fmt: skip


def to_cluster(parts: Clusters) -> Objective:
    """Return the objective: each candidate moves the images of other clusters to its own cluster of embeddings."""
    centers, goals = parts.centers, F.normalize(parts.centers, dim=1)
    own = parts.labels

    def objective(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        at = send(rows, own.device)
        others = (own[at] != which[:, None]).to(feats)  # k,B: a cluster's own images need no trigger
        share = others / others.sum(1, keepdim=True).clamp(min=1)
        apart = 2 - 2 * (F.normalize(feats, dim=2) * goals[which][:, None]).sum(2)
        arrives = torch.cdist(feats.detach(), centers.expand(len(which), -1, -1)).argmin(2) == which[:, None]
        return (apart * share).sum(1), (arrives * share).sum(1)

    return objective


def success_of(
    witness: Witness, encoder: ImageEncoder, clues: Clues, centers: Tensor, target: int, session: Session
) -> float | None:
    """Return the share of held-out images of other clusters that a trigger moves to `target`, or None without any."""
    changes = (None, witness.stamp)
    before, after = (embed(encoder, clues.held_out_images, session, change) for change in changes)
    is_other = torch.cdist(before, centers).argmin(1) != target
    arrives = torch.cdist(after, centers).argmin(1) == target
    return float(arrives[is_other].double().mean()) if bool(is_other.any()) else None
