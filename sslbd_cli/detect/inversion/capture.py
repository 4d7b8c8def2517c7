"""Measure what a trigger does to embeddings: how similar they become, and how many take a common direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.core.features import embed
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.detect.contract import Clues
from sslbd_cli.triggers._found import Witness

GOAL_PIXELS = 1 << 22  # of the images that give the common direction of triggered images, if these are enough:
LEAST = 64  # images at least


@dataclass(frozen=True)
class Frame:
    """Coordinates in which embeddings are compared: (f - centre) @ turn. Each of the two may be absent."""

    centre: Tensor | None = None
    turn: Tensor | None = None

    def __call__(self, feats: Tensor) -> Tensor:
        """Return unit vectors of the last dimension."""
        if self.centre is not None:
            feats = feats - self.centre
        if self.turn is not None:
            feats = feats @ self.turn
        return F.normalize(feats, dim=-1)


def frame(feats: Tensor, kind: str) -> Frame:
    """Return the frame of clean embeddings N,D: `raw`, `centred` on their mean, or `whitened`.

    Embeddings of many encoders lie in a narrow cone, where all cosines are high; relative to their mean they do not.
    Whitening limits the gain of directions with less than a hundredth of the mean variance.
    """
    if kind == "raw":
        return Frame()
    feats = feats.clone()  # gradients do not pass tensors of inference mode
    centre = feats.mean(0)
    if kind == "centred":
        return Frame(centre)
    values, vectors = torch.linalg.eigh(torch.cov((feats - centre).T.double()))
    turn = vectors / (values.clamp(min=0) + 0.01 * values.mean()).sqrt()
    return Frame(centre, turn.to(feats))


@dataclass(frozen=True)
class Capture:
    """The effect of a trigger on the embeddings of held-out images.

    target: float32 D, unit, the mean direction of the triggered search images. similarity: mean cosine between
    different triggered images, in the frame of the search. success: share of triggered images whose cosine with the
    target, in that frame, reaches the bar.
    """

    target: np.ndarray
    similarity: float
    success: float


@torch.no_grad()
def capture(net: ImageEncoder, clues: Clues, witness: Witness, view: Frame, bar: float, session: Session) -> Capture:
    """Measure the effect of a trigger on images that the search did not use.

    Some images of the search give the common direction, GOAL_PIXELS at most.
    """
    rows = spread(len(clues.images), max(LEAST, GOAL_PIXELS // net.size**2))
    search_feats, held_out_feats = (
        embed(net, images, session, witness.stamp) for images in (clues.images[rows], clues.held_out_images)
    )
    goal = F.normalize(view(search_feats).mean(0), dim=0)
    z = view(held_out_feats)
    target = F.normalize(F.normalize(search_feats, dim=1).mean(0), dim=0)
    return Capture(target.cpu().numpy(), float(pair_cosine(z)), float((z @ goal >= bar).double().mean()))
