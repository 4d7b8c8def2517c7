"""DECREE (Feng et al., CVPR 2023): a small universal patch that makes all images embed alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sslbd_cli.core.features import embed_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine, unit
from sslbd_cli.detect.contract import Clues, EncoderDetector, FoundTrigger, Load, Opinion, Pictures
from sslbd_cli.detect.inversion.capture import capture, frame
from sslbd_cli.detect.inversion.effort import USUAL_SIDE, Effort, effort_for, need_pairs
from sslbd_cli.detect.inversion.inversion import Course, InvertedTriggers, Weight, invert
from sslbd_cli.detect.inversion.patches import Patches
from sslbd_cli.plugin import key

APART = 3  # a trigger fails if held-out images are so many times as far apart as the bar allows
SMALL, LARGE = 0.1, 0.01  # thresholds of PL1: published, and of a later baseline at 336 pixels
USUAL, STARTS = Effort(steps=500, batch=128), 3  # on images up to USUAL_SIDE
RATES = ((0, 0.5), (240, 0.1), (400, 0.05))  # first step and learning rate, of 500 steps
WEIGHED_SIDE = 32  # above 64 pixels, the norm weighs in the loss what it would weigh at this side


@dataclass(frozen=True, kw_only=True)
class DECREE(EncoderDetector):
    """Search for the smallest patch that makes all images embed alike (DECREE, CVPR 2023).

    A mask and a pattern are optimised so that the mean cosine between stamped images exceeds 0.99 while the L1 norm of
    the mask is small. The weight of the norm rises after successes and falls after failures. The statistic is -PL1,
    where PL1 is the norm relative to that of a full mask, that is, the mean of the mask. The paper calls encoders with
    PL1 below 0.1 backdoored. This does not carry over to other sizes and architectures: a 10-pixel trigger has 0.098 at
    32 pixels, a 24-pixel trigger 0.011 at 224. Embeddings that lie in a narrow cone reach 0.99 under weak masks
    (mean_clean_cosine says how narrow; embedding=centred searches about the mean). Give clean encoders as --baseline if
    you have them.

    As in the released code: weights (1e-3, times 5 after 6 successes in a row, divided by 5 after 6 failures), learning
    rates (0.5; 0.1 from step 240, 0.05 from step 400, that is, epochs 30 and 50 of 1,000 images) and early stopping,
    but later (after the published 10 steps a 10-pixel trigger was still at 0.2). Ours: several starts in one batch, of
    which the smallest trigger counts; masks in float32; steps instead of epochs (published: at most 8,000); held-out
    images; no success is `inconclusive`, where the released code says clean.

    Above 64 pixels, 120 million pixels go through the encoder, and there is one start: at 224 pixels, 298 steps of 8
    images. The trigger is a grid of 56 x 56 free cells, enlarged bilinearly. The learning rates fall at
    the same parts of the search, and the norm weighs in the loss what it would weigh at 32 pixels.
    """

    starts: int = key(0, "random starts, optimised together (published: 1); 0: 3, above 64 pixels 1", low=0, high=100)
    steps: int = key(0, "steps at most; 0: 500 up to 64 pixels, fewer above (published: 8000)", low=0)
    batch: int = key(0, "images per step; 0: 128 up to 64 pixels, fewer above", low=0)
    patience: int = key(
        40, "steps without a smaller success after which a start ends (published: 10)", low=1, expert=True
    )
    similarity: float = key(
        0.99, "a step succeeds if stamped images have a higher mean cosine", low=0.1, high=0.9999, expert=True
    )
    embedding: str = key("raw", "raw (published); centred or whitened on clean images",
                         choices=("raw", "centred", "whitened"))  # fmt: skip
    threshold: float = key(0.0, "found below this PL1; 0: 0.1 up to 224 pixels (published), 0.01 above",
                           low=0, high=1)  # fmt: skip
    least: float = key(1e-5, "least weight of the norm", low=0, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_pairs(self.batch, "decree")

    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        clean = embed_once(encoder, clues.images, session)
        view = frame(clean, self.embedding)
        side = encoder.size

        def alike(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            cosine = pair_cosine(view(feats))
            return -cosine, cosine.detach()

        # the published L1 counts the mask once per colour channel
        scale = 3.0 * min(side, WEIGHED_SIDE if side > USUAL_SIDE else side) ** 2
        space = Patches(self._starts(side), side, session.generator("decree starts"), session.device, scale=scale)
        candidates = invert(encoder, session.pool(clues.images), space, alike, self._course(side), session)
        threshold = self.threshold or (SMALL if side <= 224 else LARGE)
        best = int(np.argmin(candidates.size))
        shares = candidates.size / scale
        witness = candidates.witness(best)
        effect = capture(encoder, clues, witness, view, self.similarity, session)
        return Opinion(
            statistic=-float(min(shares[best], 1.0)),
            threshold=-threshold,
            search_space=f"one opaque patch or mask, the same on all images, under which {self.embedding} embeddings"
            f" have a mean cosine above {self.similarity:g}; {self._starts(side)} starts",
            doubt=self._doubt(candidates, float(pair_cosine(view(clean))), effect.similarity)
            or (candidates.ended_early if shares[best] >= threshold else ""),
            trigger=FoundTrigger(witness, effect.success),
            pictures=Pictures(
                candidates.pictures(clues.held_out_images[0]),
                arrays={"witness/target": effect.target} | candidates.arrays(-np.minimum(shares, 1)),
            ),
            summary={
                "pl1": _plain(shares[best]), "l1": _plain(candidates.size[best]),
                "pl1_of_starts": [*map(_plain, shares)],
                "starts_succeeded": int(candidates.has_success.sum()), "similarity_held_out": effect.similarity,
                "mean_clean_cosine": float(pair_cosine(unit(clean))), "steps": int(candidates.rounds.max()),
            },
        )  # fmt: skip

    def load(self, judged: int, aux: int, side: int) -> Load:
        effort = self._effort(side)
        return Load(judged, gradients=self._starts(side) * effort.steps * effort.batch)

    def _effort(self, side: int) -> Effort:
        return effort_for(side, self._starts(side), USUAL, Effort(self.steps, self.batch))

    def _starts(self, side: int) -> int:
        return self.starts or (STARTS if side <= USUAL_SIDE else 1)

    def _course(self, side: int) -> Course:
        effort, is_large = self._effort(side), side > USUAL_SIDE
        weight = Weight(start=1e-3, up=5, down=5, patience=6, least=self.least, most=1e5, revive=10)
        shorter = effort.steps / USUAL.steps if is_large else 1.0
        return Course(
            rounds=effort.steps, batch=effort.batch, bar=self.similarity,
            rates=tuple((round(first * shorter), rate) for first, rate in RATES), weight=weight, look=8,
            stale=self.patience, steady=True,
        )  # fmt: skip

    def _doubt(self, candidates: InvertedTriggers, clean_cosine: float, held_out_cosine: float) -> str:
        """Return why a trigger proves nothing; empty if it does. The cosines are means without and with the trigger."""
        if clean_cosine >= self.similarity:
            return (
                f"images without any trigger have a mean cosine of {clean_cosine:.4f} already; raise similarity,"
                " or centre"
            )
        if not candidates.has_success.any():
            return f"no start brought the mean cosine above {self.similarity:g}; give more steps, or lower similarity"
        if 1 - held_out_cosine > APART * (1 - self.similarity):
            return (
                f"on held-out images the trigger brings the mean cosine to {held_out_cosine:.3f} alone;"
                " give more images"
            )
        return ""


def _plain(value: float) -> float | None:
    """Return a finite number, or None."""
    return float(value) if np.isfinite(value) else None
