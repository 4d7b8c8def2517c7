"""STRIP (Gao et al., ACSAC 2019) on embeddings: a trigger survives images laid over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import send
from sslbd_cli.core.features import embed_in_parts
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.similarity import pair_cosine, unit
from sslbd_cli.detect.contract import InputDetector, Load, Observation, Setting, State
from sslbd_cli.detect.inversion.effort import USUAL_SIDE
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

OVERLAYS, FEW_OVERLAYS = 16, 4  # by default: on images up to USUAL_SIDE, and on larger ones, which cost more


@dataclass(frozen=True, kw_only=True)
class Strip(InputDetector):
    """Flag inputs whose embedding stays the same under other images laid over them (STRIP, ACSAC 2019).

    Each input is blended with `overlays` clean images. All blends of a triggered input embed at the target. Published
    for classifiers, as low entropy of the predictions. Without classes the score is the mean cosine between the blends.
    score=entropy is minus the mean entropy of a softmax over cosines with `clusters` centers of clean embeddings; if
    the target lies between the centers, entropy rises instead, and triggered inputs rank last. BackdoorBench adds half
    of the overlay in normalised units; ours are convex blends of pixels. Each input costs `overlays` forward passes.
    Small or faint triggers do not survive the blend.
    """

    cue = "whose embedding stays the same under other images laid over them"
    cost = 8

    score: str = key("cosine", "cosine of blends with each other, or entropy over clusters",
                     choices=("cosine", "entropy"))  # fmt: skip
    overlays: int = key(0, "clean images laid over each input (64 in the paper); 0: 16, above 64 pixels 4", low=0)
    opacity: float = key(0.5, "share of the overlay in a blend", low=0.05, high=0.95)
    clusters: int = key(10, "clusters that stand for classes, with score=entropy", low=2, expert=True)
    temperature: float = key(0.1, "temperature of the softmax over cosines, with score=entropy", low=0.001, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlays == 1:
            raise InputError(f"{self.name}: overlays=1: blends are compared with each other; give 2 or more")

    def count_for(self, side: int) -> int:
        """Return how many images are laid over each image of `side` pixels."""
        return self.overlays or (OVERLAYS if side <= USUAL_SIDE else FEW_OVERLAYS)

    def load(self, judged: int, aux: int, side: int) -> Load:
        return Load(aux, (judged + self.calibration_count(aux)) * self.count_for(side))

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        count = self.count_for(setting.encoder.size)
        need = max(count, self.clusters)
        if len(images) < need:
            raise InputError(f"{self.name}: {len(images)} images of --aux to learn on, but it takes {need}; give more")
        gen = setting.session.generator(self.name)
        rows = torch.randperm(len(images), generator=gen)[:count]
        feats = unit(setting.embed(images))
        centers = unit(kmeans(feats, self.clusters, gen, restarts=3).centers)
        overlays = torch.from_numpy(np.array(images[rows.numpy()])).to(setting.device.torch)
        return {"overlays": overlays, "centers": centers}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        overlays, parts = state["overlays"], []

        def blends(chunk: Tensor) -> Tensor:
            return self.blend(send(chunk, overlays.device), overlays)

        for _, feats in embed_in_parts(setting.encoder, images, setting.session, blends, copies=len(overlays)):
            z = unit(feats).view(-1, len(overlays), feats.shape[1])
            answers = torch.log_softmax(z @ state["centers"].T / self.temperature, dim=2)
            entropy = (answers.exp() * answers).sum(2).mean(1)  # minus the entropy: low entropy is suspicious
            parts.append(torch.stack([pair_cosine(z), entropy]))
        cosine, entropy = torch.cat(parts, dim=1).double().cpu().numpy()
        return Observation.of({"cosine": cosine, "entropy": entropy}, self.score)

    def blend(self, pixels: Tensor, overlays: Tensor) -> Tensor:
        """Blend images uint8 B,3,H,W with each of K overlays: float B*K,3,H,W in [0,1]."""
        blends = torch.lerp(pixels[:, None].float(), overlays[None].float(), self.opacity) / 255
        return blends.flatten(0, 1)
