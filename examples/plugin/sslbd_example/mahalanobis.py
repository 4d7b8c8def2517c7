"""The Mahalanobis distance of an embedding from clean ones (Lee et al., NeurIPS 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sslbd_cli.core.features import embed
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(InputDetector):
    """Flag inputs whose embedding is far from clean ones in units of their spread (Lee et al., NeurIPS 2018).

    The paper has a mean for each class. Here all clean images share one mean and one covariance, because an encoder
    knows no classes. The covariance is mixed with its mean variance, so that few images are enough. If `shrink` is
    small, directions in which clean images hardly vary count most, and any change of pixels is flagged.
    """

    cue = "far from clean images by the Mahalanobis distance"
    cost = 1

    shrink: float = key(0.5, "share of the mean variance in the covariance", low=0.001, high=1)

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        """Return the mean D and the whitening matrix D,D of clean embeddings."""
        feats = embed(setting.encoder, images, setting.session).double().cpu()  # M,D
        mean = feats.mean(0)
        covariance = (feats - mean).T @ (feats - mean) / len(feats)
        flat = covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance.lerp(flat, self.shrink))
        return {"mean": mean, "whiten": vectors / values.sqrt()}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        """Score images by the length of their whitened embeddings."""
        feats = embed(setting.encoder, images, setting.session).double()  # N,D
        distances = ((feats - state["mean"].to(feats)) @ state["whiten"].to(feats)).norm(dim=1)
        return Observation({"score": distances.cpu().numpy()})
