"""The scan that PatchSearch and PoisonCAM share: cluster, choose windows, test them, train a classifier, flag images.

The two differ in how a window is chosen and in what is flagged. Each subclass sets these keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Pictures, Scores
from sslbd_cli.detect.patch_scan import classifier
from sslbd_cli.detect.patch_scan.lens import FlipTest, Lens, ScanImages, crop, find_clusters
from sslbd_cli.detect.patch_scan.localise import (
    CamLocaliser,
    Localiser,
    MaskLocaliser,
    OracleLocaliser,
    RandomLocaliser,
    RiseLocaliser,
)
from sslbd_cli.detect.patch_scan.search import Candidates, SearchSchedule, plan_search, search
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._boxes import side as pixels

LANDINGS = 5  # clusters that a trigger may split images over
ALIKE = 0.7  # two patches are one trigger if the cosine of their gains per cluster is at least this
SHOWN = 20  # images of the ranking that the report shows
CROWD = 10  # with fewer images per cluster, windows of clean images look like triggers
MOST = 1 / 3  # largest share of flagged images; more poison is no minority that clusters could show
CHECKS = 128  # test images that a flagged image's window is pasted on


@dataclass(frozen=True, kw_only=True)
class PatchScan(ImageDetector):
    """Base of detectors that look for a patch which moves other images into its cluster."""

    judges = "samples"
    cost = 50

    if TYPE_CHECKING:  # each subclass has its own defaults; no fields here, so that help lists these keys last
        localiser: str
        window: float
        decision: str

    clusters: int = key(100, "clusters of the images' embeddings (1000 on ImageNet-100 in the paper)", low=4)
    rounds: int = key(20, "rounds of k-means, at most", low=1, expert=True)
    tests: int = key(1000, "test images that patches are pasted on, those nearest to the centers", low=8)
    per_cluster: int = key(2, "images tried per cluster and round", low=1, expert=True)
    prune: float = key(0.25, "share of the clusters dropped after each round", low=0.01, high=0.99, expert=True)
    exhaustive: bool = key(False, "try every candidate on all test images, and all positions of a mask", expert=True)
    top: int = key(20, "patches that the poison classifier learns, at most", low=1)
    capture: float = key(
        0.2, "share of test images that a trigger must move into its five main clusters", low=0, high=1, expert=True
    )
    support: int = key(4, "patches that must move images into the same clusters, at least", low=1, expert=True)
    fill: str = key("mean", "content of a mask", choices=("mean", "image", "blur", "noise"), expert=True)
    stride: int = key(2, "pixels between positions of the mask", low=1, expert=True)
    coarse: int = key(3, "try every n-th position of the mask first, then those around the best", low=1, expert=True)
    debias: bool = key(True, "subtract the mean effect of a mask at the same place on other images", expert=True)
    masks: int = key(256, "random masks of localiser=rise", low=8, expert=True)
    models: int = key(5, "poison classifiers whose logits are averaged", low=1)
    steps: int = key(400, "training steps of each classifier (2000 in the paper)", low=1)
    batch: int = key(128, "images per step (32 in the paper)", low=2, expert=True)
    lr: float = key(0.05, "learning rate of the classifiers (0.01 in the paper)", low=0, expert=True)
    exclude: float = key(
        0.1, "share of the images, those of highest score, not used for training", low=0, high=0.9, expert=True
    )
    smallest: float = key(0.09, "least side of a pasted patch, as a share of the image's (20 of 224 pixels)", low=0.01,
                          high=1, expert=True)  # fmt: skip
    largest: float = key(0.36, "largest side of a pasted patch (80 of 224 pixels)", low=0.01, high=1, expert=True)
    compat: str = key("fixed", "authors: with the released code's faults", choices=("fixed", "authors"), expert=True)
    share: float = key(
        0.15, "a window is verified if it moves this share of what the median trigger moves", low=0, high=1, expert=True
    )

    @property
    def is_bound(self) -> bool:
        return self.localiser == "oracle"

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        scan = Scan(self, encoder, evidence, session)
        candidates = scan.look()
        side, tests = scan.test.side, len(scan.test)
        space = (
            f"windows of {side} pixels, chosen by {self.localiser} in {len(candidates.rows)} of {len(evidence.images)}"
            f" images, of which {self.support} carry {self.capture:.0%} of {tests} others to the same of"
            f" {self.clusters} clusters"
        )
        first = Candidates(candidates.rows[: self.top], candidates.windows[: self.top], candidates.scores[: self.top])
        is_trigger, shares = scan.prove(first)
        triggers = Candidates(first.rows[is_trigger], first.windows[is_trigger], first.scores[is_trigger])
        scores = np.zeros(len(evidence.images))
        scores[candidates.rows.numpy()] = candidates.scores.double().numpy()
        windows = np.zeros((len(evidence.images), 4), np.int32)
        windows[candidates.rows.numpy()] = candidates.windows.numpy()
        flagged, n_classified = np.zeros(len(scores), bool), 0
        if len(triggers.rows):
            scores = scan.classify(scores, triggers)
            flagged = scores > 0
            n_classified = int(flagged.sum())
            if self.decision == "verified":
                flagged = scan.verify(flagged, windows, triggers)
                # so that scores and flags agree
                scores = np.where(flagged, scores.clip(min=np.finfo(np.float64).tiny), scores.clip(max=0))
        return Findings(
            Scores(scores, flagged=flagged, ranking=candidates.rows.numpy(), windows=windows),
            search_space=space,
            doubt=self.doubt(flagged),
            pictures=Pictures(arrays=scan.pictures(candidates, triggers)),
            summary={"candidates": len(candidates.rows), "best_flips": float(candidates.scores[0]),
                     "best_capture": float(shares.max()), "triggers": len(triggers.rows), "window": side,
                     "classified": n_classified},
        )  # fmt: skip

    def doubt(self, flagged: np.ndarray) -> str:
        """Return why the flags, bool N, cannot be trusted; empty if they can, or if nothing is flagged."""
        per_cluster = len(flagged) / self.clusters
        if flagged.any() and per_cluster < CROWD:
            few = max(4, len(flagged) // CROWD)
            return (
                f"{self.name}: {flagged.sum()} images are flagged, but {per_cluster:.0f} images per cluster are too few"
                f" to tell a trigger by; give clusters={few}, or more images"
            )
        if flagged.mean() > MOST:
            return (
                f"{self.name}: {flagged.mean():.0%} of the images are flagged, more than any poisoning leaves room for:"
                " patches of clean images act as triggers on this encoder; train it longer, or raise capture="
            )
        return ""


class Scan:
    """One scan of a training set, with its clusters, flip test and localiser."""

    def __init__(self, keys: PatchScan, encoder: ImageEncoder, evidence: Evidence, session: Session) -> None:
        self.keys, self.evidence, self.session = keys, evidence, session
        size = evidence.images.shape[2]
        if keys.window > size:
            raise InputError(f"{keys.name}: a window of {keys.window:g} pixels is larger than the images of {size}")
        side = pixels(keys.window, size, size)
        self.lens, self.pool = Lens(encoder, session), session.pool(evidence.images)
        half = self.lens.dtype == torch.bfloat16
        self.clusters = find_clusters(self.lens.embed_all(self.pool), keys.clusters, keys.rounds, session.seed, half)
        raw = keys.compat == "authors"
        place = ScanImages(self.lens, self.pool, self.clusters, side)
        self.test = FlipTest(place, keys.tests, session.seed, raw)
        self.localiser = self._localiser(place, raw)
        self.schedule = SearchSchedule(keys.per_cluster, keys.prune, keys.exhaustive)

    def _localiser(self, place: ScanImages, raw: bool) -> Localiser:
        keys, gen = self.keys, self.session.generator("localiser")
        if keys.localiser == "cam":
            return CamLocaliser(place, raw=raw)
        if keys.localiser == "rise":
            return RiseLocaliser(place, masks=keys.masks, cells=6, gen=gen)
        if keys.localiser == "random":
            return RandomLocaliser(place, gen)
        if keys.localiser == "oracle":
            assert self.evidence.boxes is not None
            return OracleLocaliser(place, gen, self.evidence.boxes)
        reference = self.test.rows[:128] if keys.debias else None
        coarse = 1 if keys.exhaustive else keys.coarse
        return MaskLocaliser(place, fill=keys.fill, stride=keys.stride, coarse=coarse, reference=reference)

    def look(self) -> Candidates:
        """Search the clusters for patches that move other images."""
        gen = self.session.generator("search order")
        with self.session.work(plan_search(self.keys.clusters, self.schedule)[1], "images", "search") as ticker:
            return search(self.clusters, self.localiser, self.test, self.schedule, gen, ticker)

    def patches(self, some: Candidates) -> Tensor:
        """Return the content of the candidates' windows, normalised: C,3,S,S."""
        return crop(self.localiser.images(some.rows), some.windows)

    def gains(self, some: Candidates, first: int | None = None) -> Tensor:
        """Return how much each candidate makes each cluster grow, as shares of the test images: float32 C,K."""
        return self.test.gains(self.patches(some), first)

    def prove(self, some: Candidates) -> tuple[Tensor, Tensor]:
        """Tell which candidates act as a trigger, bool C, and what share of the test images each moves, float32 C.

        A trigger moves the share `capture` into its main clusters, and `support` candidates do so into the same ones.
        A window of a clean image (a white wall) sometimes moves as many, but into clusters of its own.
        """
        rises = self.gains(some).clamp(min=0)  # with the losses they would add up to 0
        shares = rises.topk(min(LANDINGS, self.keys.clusters), 1).values.sum(1)
        strong, unit = shares >= self.keys.capture, F.normalize(rises, dim=1)
        fellows = ((unit @ unit.T >= ALIKE) & strong).sum(1)
        return (strong & (fellows >= min(self.keys.support, len(strong)))).cpu(), shares

    def classify(self, scores: np.ndarray, triggers: Candidates) -> np.ndarray:
        """Train the poison classifiers on the triggers and return their mean logit of every image: float64 N.

        scores: float64 N, of the search. The images of highest score are left out of the training.
        """
        keys = self.keys
        # untried images tie at 0; their order is drawn, because the order of the file may give poisons away
        tie = torch.randperm(len(scores), generator=self.session.generator("untried")).numpy()
        order = np.lexsort((tie, -scores))
        rows = np.sort(order[int(keys.exclude * len(order)) :])
        if len(rows) < 2:
            raise InputError(f"{keys.name}: {len(scores)} images leave too few to learn on; lower exclude")
        sides = min(keys.smallest, keys.largest), keys.largest
        lesson = classifier.Lesson(keys.models, keys.steps, keys.batch, keys.lr, *sides)
        patches = self.lens.pixels(self.patches(triggers)).float() / 255
        models = classifier.train(self.pool, rows, patches, lesson, self.session)
        return classifier.score(models, self.pool, self.session)

    def verify(self, flagged: np.ndarray, windows: np.ndarray, triggers: Candidates) -> np.ndarray:
        """Keep the flagged images with a window that moves test images into the triggers' clusters: bool N.

        The window is the one whose masking moves the image farthest from the nearest of these clusters. It must move
        `share` of what the median trigger moves. windows, int32 N,4, is filled in for all flagged images, because a hit
        rate of the verified ones alone would be too high.
        """
        gains = self.gains(triggers, CHECKS)  # on the test images that flagged images are checked on
        spread = gains.mean(0)
        landings = spread.topk(min(LANDINGS, len(spread))).indices
        landings = landings[spread[landings] > 0.1 * spread.max()]
        least = self.keys.share * float(gains[:, landings].sum(1).median())
        rows = torch.from_numpy(np.flatnonzero(flagged))
        localiser = self.localiser
        if isinstance(localiser, MaskLocaliser):
            localiser = localiser.toward(landings)
        is_verified = torch.zeros(len(flagged), dtype=torch.bool)
        with self.session.work(len(rows), "images", "verify") as ticker:
            for part in torch.split(rows, self.lens.batch) if len(rows) else ():
                at = localiser(part)
                shares = self.test.gains(crop(localiser.images(part), at), CHECKS)[:, landings].sum(1).cpu()
                is_verified[part] = shares >= least
                windows[part.numpy()] = at.numpy()
                ticker.advance(len(part))
        # an image whose patch the search has proven stays flagged
        is_verified[triggers.rows] = True
        windows[triggers.rows.numpy()] = triggers.windows.numpy()
        result: np.ndarray = is_verified.numpy()
        return result

    def pictures(self, candidates: Candidates, triggers: Candidates) -> dict[str, np.ndarray]:
        """Return what the report shows: the first images with windows, scores and patches, and the best trigger."""
        first = Candidates(candidates.rows[:SHOWN], candidates.windows[:SHOWN], candidates.scores[:SHOWN])
        patches = self.lens.pixels(self.patches(first)).numpy()
        arrays = {
            "found/images": np.ascontiguousarray(self.evidence.images[first.rows.numpy()]),
            "found/rows": first.rows.numpy(),
            "found/windows": first.windows.numpy().astype(np.int32),
            "found/scores": first.scores.double().numpy(),
            "found/patches": patches,
        }
        if len(triggers.rows):
            arrays["found/trigger"] = self.lens.pixels(self.patches(triggers)).numpy()[:1]
        return arrays
