"""Fine-Pruning (Liu et al., RAID 2018) without labels: switch off dormant channels, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.features import embed, knn_predict, split_rows
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import unit
from sslbd_cli.core.stages import Channels, channels, reading
from sslbd_cli.plugin import key
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.repair import Recovery, original_of

STEPS = 20  # steps of the search for the share to prune
SAMPLE = 4096  # images to measure activations and neighbours on


@dataclass(frozen=True, kw_only=True)
class FinePrune(Recovery):
    """Prune the channels that clean images leave dormant, then fine-tune (Liu et al., RAID 2018; no labels here).

    In the last stages, the channels with the smallest mean |activation| are switched off for good, also during
    fine-tuning. The paper prunes until a classifier's accuracy falls. Without labels, clusters of the original
    embeddings replace the classes: pruning stops before the share of held-out images whose nearest neighbours name the
    right cluster falls by more than `drop`. In transformers, the hidden channels of the blocks are pruned.
    """

    share: float = key(0.0, "share of a stage's channels to prune; 0: decide by drop", low=0, high=0.95)
    drop: float = key(0.02, "largest accepted fall of the agreement on held-out images", low=0, high=1)
    stages: int = key(1, "number of last stages to prune (paper: the last layer)", low=1)
    clusters: int = key(20, "number of clusters that replace the classes", low=2, expert=True)

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        original = original_of(encoder, session.device)
        student = encoder.twin().to(session.device.torch).eval().requires_grad_(True)
        order = torch.randperm(len(supplies.images), generator=session.generator("sample"))[:SAMPLE].sort().values
        sample = supplies.images[order.numpy()]
        groups = channels(student, self.stages)
        ranks = [_ranks(student, group, sample, session) for group in groups]
        share = self.share or self._most(original, ranks, sample, session)

        _prune(groups, ranks, share)
        fit = self.recovery((original, student), supplies, session)
        fit.after_step = lambda progress: _prune(groups, ranks, share)
        fit.remark = lambda epoch: f", {share:.0%} of the channels of the last {self.stages} stages off"
        fit.run(self.name)
        return student.eval()

    def _most(self, net: ImageEncoder, ranks: list[Tensor], sample: np.ndarray, session: Session) -> float:
        """Return the largest share, in steps of 1/20, up to which the agreement never fell by more than drop."""
        rest, held_out = split_rows(len(sample), 0.25, session.generator("held out"))
        feats = unit(embed(net, sample, session))
        classes = min(self.clusters, len(rest) // 2)
        labels = kmeans(feats, classes, session.generator("clusters")).labels.to(feats.device)

        def agreement(feats: Tensor) -> float:
            neighbours = min(20, len(rest))
            guess = knn_predict(feats[rest], labels[rest], feats[held_out], classes, neighbours)
            return float((guess == labels[held_out]).float().mean())

        before, most = agreement(feats), 0.0
        for step in range(1, STEPS):
            pruned = net.twin()
            _prune(channels(pruned, self.stages), ranks, step / STEPS)
            if agreement(embed(pruned, sample, session)) < before - self.drop:
                break
            most = step / STEPS
        return most


def _prune(groups: list[Channels], ranks: list[Tensor], share: float) -> None:
    for group, rank in zip(groups, ranks, strict=True):
        group.switch_off(rank < round(share * len(rank)))


def _ranks(net: ImageEncoder, group: Channels, images: np.ndarray, session: Session) -> Tensor:
    """Return each channel's rank by mean |activation| on images, int64 C on the device; 0 is the most dormant."""
    parts: list[Tensor] = []
    count = 0
    with reading([group.read]) as outputs:

        def add(chunk: Tensor) -> Tensor:
            nonlocal count
            if count:
                parts.append(_activity(outputs[0][:count]))
            count = len(chunk)
            return chunk

        embed(net, images, session, change=add)  # each call adds the chunk before it
        parts.append(_activity(outputs[0][:count]))
    return torch.cat(parts).sum(0).argsort(stable=True).argsort()


def _activity(out: Tensor) -> Tensor:
    """Sum |activation| of maps B,C,H,W or tokens B,T,C over all places: float32 B,C."""
    return out.float().abs().sum((2, 3) if out.ndim == 4 else 1)
