"""Distance to clean neighbours (Sun et al., ICML 2022), for embeddings of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.core.loader import at_once
from sslbd_cli.core.similarity import nearest_rows, unit
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class KnnDistance(InputDetector):
    """Flag inputs embedded far from clean images: the distance to the k-th nearest (Sun et al., ICML 2022).

    Features have unit length, as published for out-of-distribution inputs. If the target of a backdoor lies among clean
    images, as a class does, triggered inputs come near them: they score low, and AUROC falls below one half.
    """

    cue = "embedded far from clean images"
    cost = 1

    k: int = key(10, "the score is the distance to the k-th nearest neighbour", low=1)

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        if self.k > len(images):
            raise InputError(f"{self.name}: k={self.k} of {len(images)} images of --aux to learn on; lower k")
        return {"bank": unit(setting.embed(images))}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        feats, bank = unit(setting.embed(images)), state["bank"]
        step = at_once("neighbour similarities", each=len(bank))
        near = nearest_rows(feats, bank, self.k, step)[0][:, -1]
        return Observation({"score": (2 - 2 * near.double()).clamp(min=0).sqrt().cpu().numpy()})
