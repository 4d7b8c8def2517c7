"""Agreement with an independent encoder: it predicts the embeddings of clean images, but not of triggered ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.features import embed_once
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Platonic(InputDetector):
    """Flag inputs whose embedding an independent encoder does not predict (platonic, with --reference).

    A ridge regression, learned on clean images, predicts the encoder's whitened principal components from the
    reference's embedding. The score is 1 - cosine between prediction and fact. A trigger moves the encoder's embedding
    to the target, but hardly the reference's, unless the reference has the same backdoor. The idea is that of "Platonic
    Defense" (arXiv 2606.29451), whose code is not released. Ours is its simplest form: one reference and one linear
    map.
    """

    cue = "that the encoder sees otherwise than the reference encoder does"
    cost = 2

    components: int = key(64, "principal components of the encoder's embedding that are compared, at most", low=1)
    ridge: float = key(0.01, "ridge penalty, relative to the mean variance of the reference's embedding", low=0)

    @property
    def needs_reference(self) -> bool:
        return True

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        theirs, ours = self._both(images, setting)
        centre, origin = ours.mean(0), theirs.mean(0)
        _, values, directions = torch.linalg.svd(ours - centre, full_matrices=False)
        rank = min(self.components, int((values > 1e-6 * values[0].clamp(min=1e-12)).sum()))
        whiten = directions[:rank].T * (len(ours) ** 0.5 / values[:rank].clamp(min=1e-12))  # D,C
        x, y = theirs - origin, (ours - centre) @ whiten
        gram = x.T @ x
        strength = self.ridge * gram.diagonal().mean().clamp(min=1e-12)
        across = torch.linalg.solve(gram + strength * torch.eye(len(gram)).to(gram), x.T @ y)  # D',C
        return {"centre": centre, "origin": origin, "whiten": whiten, "across": across}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        theirs, ours = self._both(images, setting)
        prediction = unit((theirs - state["origin"]) @ state["across"])
        actual = unit((ours - state["centre"]) @ state["whiten"])
        return Observation({"score": (1 - (prediction * actual).sum(1)).double().cpu().numpy()})

    def _both(self, images: np.ndarray, setting: Setting) -> tuple[Tensor, Tensor]:
        """Return the reference's and the encoder's unit embeddings, float64 on the device."""
        encoders = setting.need_reference(self.name), setting.encoder
        theirs, ours = (unit(embed_once(net, images, setting.session)).double() for net in encoders)
        return theirs, ours
