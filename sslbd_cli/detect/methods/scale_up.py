"""SCALE-UP (Guo et al., ICLR 2023) on embeddings: a trigger survives the amplification of its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import send
from sslbd_cli.core.features import embed_in_parts
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import InputDetector, Load, Observation, Setting, State
from sslbd_cli.detect.inversion.effort import USUAL_SIDE
from sslbd_cli.plugin import key

FEW_FACTORS = 4  # tried on images above USUAL_SIDE, which cost more


@dataclass(frozen=True, kw_only=True)
class ScaleUp(InputDetector):
    """Flag inputs whose embedding survives the amplification of all pixel values (SCALE-UP, ICLR 2023).

    Published for classifiers: the share of the images min(n x, 1), n = 2 ... scales, that are classified like x. For
    embeddings it is the mean cosine of these images with x, standardised for each n by mean and deviation on clean
    images (the paper's data-limited variant). Faint and high-frequency triggers do not survive. Bright images survive
    without a trigger.
    """

    cue = "whose embedding survives the amplification of their pixels"
    cost = 4

    scales: int = key(11, "largest factor; the released code goes to 11", low=2, high=64)
    factors: int = key(0, "factors tried, from 2 to the largest; 0: all of them, above 64 pixels 4", low=0, high=63)

    def load(self, judged: int, aux: int, side: int) -> Load:
        return Load(0, (judged + aux) * len(self.factors_for(side)))

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        cosines = self._cosines(images, setting)
        return {"mean": cosines.mean(0), "spread": cosines.std(0, correction=0).clamp(min=1e-6)}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        cosines = self._cosines(images, setting)
        score = ((cosines - state["mean"]) / state["spread"]).mean(1)
        return Observation({"score": score.cpu().numpy(), "uncalibrated": cosines.mean(1).cpu().numpy()})

    def factors_for(self, size: int) -> Tensor:
        """Return 1 and the factors that images of a size are multiplied by, int64, evenly spread up to the largest."""
        count = self.factors or (self.scales - 1 if size <= USUAL_SIDE else min(FEW_FACTORS, self.scales - 1))
        spread = torch.linspace(self.scales, 2, count, dtype=torch.float64).round().long()
        factors: Tensor = torch.unique(torch.cat([torch.ones(1, dtype=torch.int64), spread]))
        return factors

    def _cosines(self, images: np.ndarray, setting: Setting) -> Tensor:
        """Return the cosines, float64 N,S, of each image's amplified versions with itself."""
        factors = self.factors_for(setting.encoder.size).to(setting.device.torch)

        def amplify(chunk: Tensor) -> Tensor:
            bright = send(chunk, factors.device)[:, None] * factors[:, None, None, None].short()
            return bright.clamp(max=255).to(torch.uint8).flatten(0, 1)

        parts = []
        for _, feats in embed_in_parts(setting.encoder, images, setting.session, amplify, copies=len(factors)):
            z = unit(feats).view(-1, len(factors), feats.shape[1])
            parts.append((z[:, 1:] * z[:, :1]).sum(2).double())
        return torch.cat(parts)
