"""Neural Cleanse (Wang et al., S&P 2019) on an encoder and a downstream classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.features import Labelled, embed, embed_once, numbers, stratified_rows
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.perceptron import fit_perceptron, new_perceptron
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Plan
from sslbd_cli.detect.contract import Clues, EncoderDetector, FoundTrigger, Load, Opinion, Pictures
from sslbd_cli.detect.inversion.effort import USUAL_COUNT, Pace, pace_for
from sslbd_cli.detect.inversion.inversion import BARS, Course, Weight, invert, smallest
from sslbd_cli.detect.inversion.patches import Patches
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

BRISK_SIDE = 32  # above 64 pixels, the norm weighs in the loss what it would weigh at this side
LEAST = 3  # least number of triggers among which one can be an outlier


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(EncoderDetector):
    """Search for the smallest patch that turns all images into one class, for each class (Neural Cleanse, S&P 2019).

    A classifier on unit features (BadEncoder's 512-256 perceptron) learns the labels of --data. For each class a mask
    and a pattern are optimised so that 99 % of the images are assigned to it while the L1 norm of the mask is small. A
    class whose norm is far below the median is the target. The statistic is log(median / L1) of the smallest norm;
    above 1 the verdict is found. index=mad is the published statistic, (median - L1) / (1.4826 MAD), found above 2.
    With few classes the MAD varies by chance, clean models above 2 are common, and a large trigger is hardly an outlier
    (BadEncoder's authors find the method insufficient). A backdoor for another downstream task has no class here. Give
    clean encoders as --baseline.

    As published: the weight of the norm is 0 at first, 1e-3 after 5 successful rounds, then doubles after 5 successes
    and is divided by 2^1.5 after 5 failures; the smallest norm of successful rounds counts; the search stops after 25
    rounds without gain if the weight has both risen and fallen. Ours: all classes are one batch; the norm is of the
    mask as it is, not of an 8-bit picture; classes without success are left out and counted, where the released code
    uses the last mask; held-out images. The published rounds are minibatches=31,rounds=1000.

    Above 64 pixels, all classes share the pixels that decree's search sees at 32 pixels: at 224, ten classes get 49
    steps of 8 images each. There a round is one step, weights change after 2 rounds instead of 5, the norm weighs what
    it would weigh at 32 pixels, and mask and pattern are 56 x 56 free cells, enlarged bilinearly.
    """

    needs_labels = True

    rounds: int = key(0, "rounds at most; each ends with a check of success; 0: by size (published: 1000)", low=0)
    minibatches: int = key(0, "batches per round; 0: 6 up to 64 pixels, 1 above (published: 31)", low=0, expert=True)
    batch: int = key(0, "images per batch; 0: 32 up to 64 pixels, fewer above", low=0)
    lr: float = key(0.0, "learning rate of Adam; 0: 0.1 up to 64 pixels (published), 0.3 above", low=0)
    success: float = key(
        0.99, "a round succeeds if a larger share is assigned to the class", low=0.1, high=0.9999, expert=True
    )
    index: str = key("ratio", "how far the smallest is below the median: ratio (logarithm) or mad (published)",
                     choices=("ratio", "mad"))  # fmt: skip
    threshold: float = key(0.0, "found above this index; 0: 1 for ratio, 2 for mad (published)", low=0)
    hidden: str = key(
        "512-256", "widths of the classifier's hidden layers, joined by dashes; empty: linear", expert=True
    )
    epochs: int = key(50, "epochs of the classifier's training", low=1, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers(self.hidden, "neural-cleanse: hidden")

    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        head, accuracy = self._head(encoder, clues, session)
        classes, side = len(clues.classes), encoder.size

        def to_class(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = head(F.normalize(feats, dim=2))
            target_class = which[:, None].expand(logits.shape[:2])
            loss = F.cross_entropy(logits.transpose(1, 2), target_class, reduction="none").mean(1)
            return loss, (logits.detach().argmax(2) == target_class).float().mean(1)

        pace = self._pace(side, classes)
        scale = float((BRISK_SIDE if pace.is_brisk else side) ** 2)
        space = Patches(classes, side, session.generator("neural cleanse starts"), session.device, scale=scale)
        candidates = invert(encoder, session.pool(clues.images), space, to_class, self._course(pace), session)
        bar = self.success if pace.is_brisk else None
        outlier = smallest(candidates, "classes", LEAST, self.index, bar=bar)
        target = outlier.target
        witness = candidates.witness(target)
        with torch.no_grad():
            feats = embed(encoder, clues.held_out_images, session, witness.stamp)
            predictions = head(F.normalize(feats, dim=1)).argmax(1).cpu().numpy()
        assert clues.held_out_labels is not None
        others = clues.held_out_labels != target
        return Opinion(
            statistic=float(outlier.index[target]),
            threshold=self.threshold or BARS[self.index],
            search_space=f"for each of {classes} classes of --data, one opaque patch or mask that turns"
            f" {self.success:.0%} of the images into it",
            doubt=outlier.doubt,
            trigger=FoundTrigger(witness, float((predictions[others] == target).mean())) if outlier.is_any else None,
            pictures=Pictures(
                candidates.pictures(clues.held_out_images[0]),
                arrays=candidates.arrays(outlier.index)
                | {
                    "per_class/l1": candidates.size,
                    "per_class/success": np.nan_to_num(candidates.trace["measure"]).max(0),
                },
            ),
            summary=outlier.summary
            | {"target": clues.classes[target] if outlier.is_any else None, "head_accuracy": accuracy},
        )

    def load(self, judged: int, aux: int, side: int) -> Load:
        return Load(judged, gradients=USUAL_COUNT * self._pace(side, USUAL_COUNT).images)

    def _pace(self, side: int, classes: int) -> Pace:
        return pace_for(side, classes, Pace(self.rounds, self.minibatches, self.batch, self.lr))

    def _head(self, encoder: ImageEncoder, clues: Clues, session: Session) -> tuple[nn.Sequential, float]:
        """Fit the downstream classifier; returns it and its accuracy on the held-out images."""
        assert clues.labels is not None and clues.held_out_labels is not None
        labels, held_out_labels = (torch.from_numpy(np.array(part)) for part in (clues.labels, clues.held_out_labels))
        if len(np.unique(clues.labels)) < 2:
            raise InputError("neural-cleanse: the images of --data are of one class; a task has 2 at least")
        feats = embed_once(encoder, clues.images, session).clone()
        rest, valid = stratified_rows(labels, 0.2, session.generator("neural cleanse validation"))
        train, check = (Labelled(feats[rows.to(feats.device)], labels[rows].to(feats.device)) for rows in (rest, valid))
        head = new_perceptron(
            feats.shape[1], numbers(self.hidden, "neural-cleanse: hidden"), len(clues.classes), 0.5, session.seed
        )
        plan = Plan(epochs=self.epochs, batch=min(256, len(rest)), lr=0.001, optimiser="adamw")
        fit_perceptron(head, train, check, plan, session.seed)
        with torch.no_grad():
            right = (
                head(F.normalize(embed_once(encoder, clues.held_out_images, session), dim=1)).argmax(1).cpu()
                == held_out_labels
            )
        return head.requires_grad_(False), float(right.double().mean())

    def _course(self, pace: Pace) -> Course:
        weight = Weight(start=1e-3, late=True, up=2, down=2**1.5, patience=pace.patience)
        return Course(
            rounds=pace.rounds, steps=pace.minibatches, batch=pace.batch, bar=self.success, rates=((0, pace.lr),),
            weight=weight, stale=25, both_ways=True,
        )  # fmt: skip
