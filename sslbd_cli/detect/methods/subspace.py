"""Subspace detection (ICLR 2026): the distance of an image from the texts of the class that it is taken for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.detect.contract import Observation, Setting, State
from sslbd_cli.detect.pairs import in_joint_space, projection_of, text_vectors
from sslbd_cli.detect.prompted import PromptedDetector
from sslbd_cli.language import prompts as files
from sslbd_cli.plugin import key

RATIOS = 0.85, 1.0  # cosine of an extrapolated text with the class's, relative to that of the text itself
TRIALS = 128  # draws of an extrapolation
PLAIN = "a photo of a {}."  # the text that stands for a class
SPREAD = 0.001  # of the samples around the mean of a component


@dataclass(frozen=True, kw_only=True)
class Subspace(PromptedDetector):
    """Flag inputs of a CLIP model that lie far from the texts of the class that they are taken for.

    The variants of a class's text span a subspace (principal components of 95 % of their variance). In it, further
    texts are extrapolated from the variants. The score is the mean squared distance of the image's unit vector from
    samples around their mean, for the class whose plain text is nearest. Triggered images are near their class's text
    by a shortcut, which the variants do not share. The authors' variants are a class's name in other alphabets, its
    translation and descriptions; here they are the prompts of `prompts`, of which the first stands for the class. Their
    threshold, the largest score of clean references, is reported as the rule `authors`.
    """

    cue = "which lie far from the texts of the class that they are taken for"
    cost = 2

    variance: float = key(0.95, "share of the variance that the subspace keeps", low=0.01, high=1, expert=True)
    texts: int = key(90, "texts extrapolated for each component", low=1, high=1000, expert=True)
    components: int = key(3, "components that samples are drawn from", low=1, high=100, expert=True)
    samples: int = key(15, "samples of a class", low=1, high=1000, expert=True)

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        gen = setting.session.generator(self.name, "texts")
        groups = self.groups((PLAIN, *files.read("imagenet-7").templates, "a {}.", "{}"), 2, gen)
        vectors = text_vectors(setting.encoder, [text for texts in groups for text in texts], setting.session).cpu()
        parts = torch.split(vectors, [len(texts) for texts in groups])
        samples = torch.stack([self._samples(part, gen) for part in parts])  # C,S,K
        state = {"samples": samples, "plain": torch.stack([part[0] for part in parts])}
        state["projection"] = projection_of(setting.encoder).cpu()
        return {name: tensor.to(setting.device.torch) for name, tensor in state.items()}

    def _samples(self, vectors: Tensor, gen: torch.Generator) -> Tensor:
        """Draw samples of a class, S,K, given its texts' unit vectors T,K, the plain one first."""
        mean = vectors.mean(0)
        centred = vectors - mean
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        if float(sizes.square().sum()) <= torch.finfo(vectors.dtype).eps:
            return mean.expand(self.samples, -1).clone()
        shares = sizes.square().cumsum(0) / sizes.square().sum()
        basis = directions[: int((shares < self.variance).sum()) + 1]  # R,K
        places = centred @ basis.T  # T,R
        drawn = []
        for _ in range(self.components):
            more = self._extrapolated(vectors, places, mean, basis, gen)
            points = torch.cat([places[1:], more])
            drawn.append((points.mean(0), points - points.mean(0)))
        rows = torch.randint(self.components, (self.samples,), generator=gen).tolist()
        noise = [torch.randn(len(drawn[row][1]), generator=gen) @ drawn[row][1] for row in rows]
        return torch.stack(
            [mean + (drawn[row][0] + SPREAD * each) @ basis for row, each in zip(rows, noise, strict=True)]
        )

    def _extrapolated(
        self, vectors: Tensor, places: Tensor, mean: Tensor, basis: Tensor, gen: torch.Generator
    ) -> Tensor:
        """Extrapolate texts beyond the variants: places P,R. Each is the first draw whose cosine ratio is in RATIOS."""
        variants = places[1:]
        each = max(1, self.texts // len(variants))
        shares = torch.rand(len(variants), each, TRIALS, 1, generator=gen)
        tried = variants[:, None, None] + shares * (variants - places[0])[:, None, None]  # V,E,T,R
        cosines = F.cosine_similarity(mean + tried @ basis, vectors[0], dim=3)
        ratios = cosines / F.cosine_similarity(vectors[1:], vectors[:1], dim=1).clamp(min=1e-8)[:, None, None]
        fits = (ratios > RATIOS[0]) & (ratios < RATIOS[1])
        first = torch.where(fits.any(2), fits.int().argmax(2), TRIALS - 1)
        return tried.gather(2, first[:, :, None, None].expand(-1, -1, 1, tried.shape[3])).flatten(0, 2)

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        vectors = in_joint_space(setting.embed(images), state["projection"])
        nearest = (vectors @ state["plain"].T).argmax(1)
        means, squares = state["samples"].mean(1)[nearest], state["samples"].square().sum(2).mean(1)[nearest]
        score = 1 - 2 * (vectors * means).sum(1) + squares  # the mean of the squared distances from all samples
        return Observation({"score": score.double().cpu().numpy()})
