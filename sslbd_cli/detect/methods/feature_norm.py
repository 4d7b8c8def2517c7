"""The length of an embedding: the simplest cue there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class FeatureNorm(InputDetector):
    """Flag inputs whose embedding is unusually long or short: a baseline that a detector should beat.

    The score is how many median absolute deviations the norm lies from the median of clean images. DeDe's first public
    versions took long embeddings for poisoned ones.
    """

    cue = "whose embedding is longer or shorter than clean ones are"
    cost = 1

    side: str = key("both", "which end is suspicious", choices=("both", "long", "short"))

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        norms = setting.embed(images).double().norm(dim=1)
        away = (norms - norms.median()).abs().median()
        return {"median": norms.median(), "spread": away.clamp(min=1e-12)}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        norms = setting.embed(images).double().norm(dim=1)
        away = (norms - state["median"]) / state["spread"]
        score = away.abs() if self.side == "both" else -away if self.side == "short" else away
        return Observation({"score": score.cpu().numpy()})
