"""Beatrix (Ma et al., NDSS 2023) on encoders: Gram matrices of inner maps outside the bounds of clean images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.features import Layer, embed, embed_in_parts, layers
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.loader import at_once
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key


@dataclass(frozen=True)
class Gram(Layer):
    """A layer read as signed p-th roots of the Gram matrices of its maps to the power p, p = 1 ... orders.

    The result is float32 B, orders * pairs of `channels` (upper triangle). scale: maps are divided by it, so that high
    powers stay finite.
    """

    channels: Tensor | None = None
    orders: int = 8
    scale: float = 1.0

    def pooled(self, maps: Tensor) -> Tensor:
        assert self.channels is not None
        flat = maps.float().flatten(2)[:, self.channels]  # B,C,P
        flat = flat / self.scale
        rows, columns = torch.triu_indices(flat.shape[1], flat.shape[1], device=flat.device)
        roots = []
        with torch.autocast(flat.device.type, enabled=False):  # bounds and deviations are small differences
            for order in range(1, self.orders + 1):
                powers = flat**order
                grams = (powers @ powers.mT)[:, rows, columns]
                roots.append(grams.sign() * grams.abs() ** (1 / order))
        return torch.cat(roots, dim=1)


@dataclass(frozen=True, kw_only=True)
class Beatrix(InputDetector):
    """Flag inputs whose inner maps correlate unlike those of any clean image (Beatrix, NDSS 2023).

    The features are Gram matrices of orders 1 to 8 of a layer's maps. The bounds of a feature are its median on clean
    images plus and minus 10 median absolute deviations. The score is how far the features lie outside their bounds,
    relative to the bound. In the paper bounds are per class, from 30 clean images each; here they are per cluster of
    unit embeddings, or the same for all images (clusters=1). The maps are those that enter the last stage, as in the
    released code. At most `channels` of them are used, drawn at random, because the pairs of a thousand would fill the
    memory. We flag single inputs; the paper's further test, whether a class splits in two, needs classes.
    """

    cue = "whose inner maps correlate as those of no clean image do"
    cost = 8

    layer: str = key("", "inner layer, named as in sslbd probe --layer; empty: the last but one")
    clusters: int = key(1, "clusters of embeddings, each with its own bounds; 1: one for all images", low=1)
    images: int = key(500, "clean images that set the bounds, at most", low=20, expert=True)
    channels: int = key(128, "maps that are paired, at most", low=2, expert=True)
    orders: int = key(8, "highest power", low=1, high=8)
    width: float = key(10.0, "median absolute deviations from the median to a bound", low=0.1)

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        gen = setting.session.generator(self.name)
        images = images[torch.randperm(len(images), generator=gen)[: self.images].sort().values.numpy()]
        feats = unit(setting.embed(images))
        if 20 * self.clusters > len(images):
            raise InputError(f"{self.name}: {self.clusters} clusters of {len(images)} images; 20 each are the least")
        groups = kmeans(feats, self.clusters, gen, restarts=3)
        means = embed(setting.encoder, images, setting.session, layer=Layer(self._layer(setting), 1))
        channels = torch.randperm(means.shape[1], generator=gen)[: self.channels].sort().values
        state = {"channels": channels.to(means.device), "centers": unit(groups.centers), "scale": means.abs().max()}
        grams = torch.cat([grams for _, grams in self._grams(images, state, setting)])
        members = [(groups.labels == number).nonzero().flatten() for number in range(self.clusters)]
        low, high = self._bounds(grams, members)
        return state | {"low": low, "high": high}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        parts = []
        near = (unit(setting.embed(images)) @ state["centers"].T).argmax(1)
        for rows, grams in self._grams(images, state, setting):
            low, high = state["low"][near[rows]], state["high"][near[rows]]
            below = (low - grams).clamp(min=0) / low.abs().clamp(min=1e-6)
            above = (grams - high).clamp(min=0) / high.abs().clamp(min=1e-6)
            parts.append((below + above).double().mean(1))
        return Observation({"score": torch.cat(parts).cpu().numpy()})

    def _bounds(self, grams: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the bounds of K clusters, given their rows of N,F features: float32 K,F each. Sort some at a time."""
        bounds = []
        for part in torch.split(grams, at_once("gram numbers", grams.device.type, len(grams)), dim=1):
            clusters = [part[rows] for rows in members]
            middle = torch.stack([_lower_median(rows) for rows in clusters])
            spread = [_lower_median((rows - centre).abs()) for rows, centre in zip(clusters, middle, strict=True)]
            away = self.width * torch.stack(spread)
            bounds.append(torch.stack([middle - away, middle + away]))
        low, high = torch.cat(bounds, dim=2)
        return low, high

    def _layer(self, setting: Setting) -> str:
        names = list(layers(setting.encoder))
        if not names:
            raise InputError(f"{self.name}: {setting.encoder.arch.name} has no inner layers that can be read")
        if self.layer and self.layer not in names:
            raise InputError(f"{self.name}: no layer={self.layer}; {setting.encoder.arch.name} has {', '.join(names)}")
        return self.layer or names[max(0, len(names) - 2)]

    def _grams(self, images: np.ndarray, state: State, setting: Setting) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of the images, and their Gram features."""
        scale = max(float(state["scale"]), 1e-12)
        gram = Gram(self._layer(setting), 0, state["channels"], self.orders, scale)
        numbers = self.orders * len(state["channels"]) * (len(state["channels"]) + 1) // 2
        step = at_once("gram numbers", setting.device.kind, numbers)
        return embed_in_parts(setting.encoder, images, setting.session, batch=step, layer=gram)


def _lower_median(rows: Tensor) -> Tensor:
    """Return the median of each column of N,F. On CUDA, `Tensor.median` along a dimension is not deterministic."""
    return rows.sort(0).values[(len(rows) - 1) // 2]
