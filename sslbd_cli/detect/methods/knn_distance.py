"""Distance to clean neighbours (Sun et al., ICML 2022), for embeddings of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sslbd_cli.core.loader import at_once
from sslbd_cli.core.similarity import nearest_rows, unit
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class KnnDistance(InputDetector):
    """Flag inputs embedded farther from clean images than these are from each other, or nearer.

    The distance is that to the k-th nearest clean image, of features of unit length (Sun et al., ICML 2022, who flag
    far inputs as out of distribution). If the target of a backdoor lies among clean images, as a class does, triggered
    inputs come nearer to them than clean inputs do: with side=far, the published score, they rank last.
    side=both counts how many median absolute deviations the distance lies from the median of clean images, which are
    compared with each other, and takes the deviations of its own side of the median.
    """

    cue = "embedded farther from clean images than these are from each other, or nearer"
    cost = 1
    k: int = key(10, "the score is the distance to the k-th nearest neighbour", low=1)
    side: str = key(
        "both", "which inputs are suspicious: far (published), near or both", choices=("both", "far", "near")
    )

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        if self.k >= len(images):
            raise InputError(f"{self.name}: k={self.k} of {len(images)} images of --aux to learn on; lower k")
        bank = unit(setting.embed(images))
        away = self._distances(bank, bank, others=True)
        middle = away.median()
        spread = [
            part.median().clamp(min=1e-12) for part in (middle - away[away <= middle], away[away >= middle] - middle)
        ]
        return {"bank": bank, "median": middle, "spread_near": spread[0], "spread_far": spread[1]}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        away = self._distances(unit(setting.embed(images)), state["bank"])
        farther = (away - state["median"]) / state["spread_far"]
        nearer = (state["median"] - away) / state["spread_near"]
        score = {"far": away, "near": -away, "both": farther.maximum(nearer)}[self.side]
        return Observation({"score": score.cpu().numpy()})

    def _distances(self, feats: Tensor, bank: Tensor, others: bool = False) -> Tensor:
        """Return the distance of each row N,D to the k-th nearest of the bank, float64 N. others: as `nearest_rows`."""
        step = at_once("neighbour similarities", each=len(bank))
        near = nearest_rows(feats, bank, self.k, step, others)[0][:, -1]
        return (2 - 2 * near.double()).clamp(min=0).sqrt()
