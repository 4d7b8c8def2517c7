"""Self-supervised pre-training: images to views to an objective. Labels never come near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sslbd_cli.core import checks
from sslbd_cli.core.augment import Recipe, augment, compiled
from sslbd_cli.core.bases import Objective
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.features import embed, knn_predict
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import Arch, ImageEncoder, new
from sslbd_cli.core.train import Checkpoint, Fit, Plan, Terms, Watch


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Everything that determines a pre-training but its data, device and seed."""

    objective: Objective
    arch: Arch
    plan: Plan
    recipe: Recipe
    compiled: bool = False
    layout: str = "auto"  # channels-last: yes, no, or where it pays


@dataclass(frozen=True)
class Monitor:
    """A labelled set that is watched but never trained on. images: uint8 N,3,H,W; labels: int64 N."""

    images: np.ndarray
    labels: np.ndarray
    classes: int


def pretrain(
    images: np.ndarray,
    setup: Pretraining,
    device: Device,
    seed: int,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    monitor: Monitor | None = None,
) -> ImageEncoder:
    """Train an encoder on unlabeled images uint8 N,3,H,W.

    Raises Unsound where training diverges (F01) or the features collapse (F02), InputError where the set is smaller
    than a batch. Seven parameters: the last two are what a run may do without.
    """
    net = build(images, setup, device, seed)
    learner = _learner(net, setup, device, seed)
    pool = Pool(images, device)
    view = _view(setup)

    def loss(rows: torch.Tensor, gen: torch.Generator) -> Terms:
        batch = pool.batch(rows)
        views = [view(batch, gen) for _ in range(setup.objective.views)]
        return {"loss": setup.objective.loss(learner, views)}

    fit = Fit(learner, loss, len(images), setup.plan, device, seed)
    fit.after_step = lambda progress: setup.objective.after_step(learner, progress)
    fit.checkpoint = checkpoint
    if monitor is not None:
        fit.remark = _knn_remark(net, monitor, device, seed)
    fit.run(watch, str(setup.objective.name))
    checks.not_collapsed(embed(net, images[: min(len(images), 2048)], device))
    return net.eval()


def build(images: np.ndarray, setup: Pretraining, device: Device, seed: int) -> ImageEncoder:
    """Build the encoder with random weights, normalised by the images' own channel statistics, on the device."""
    mean, std = channel_statistics(images)
    net = new(setup.arch, images.shape[-1], mean, std, generator(seed, "weights")).to(device.torch)
    if setup.layout == "yes" or (setup.layout == "auto" and channels_last_pays(device)):
        net = net.to(memory_format=torch.channels_last)
    if setup.compiled:
        net.compile()
    return net


def _view(setup: Pretraining) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    if setup.compiled:
        return compiled(setup.recipe)
    return lambda images, gen: augment(images, setup.recipe, gen)


def _learner(net: ImageEncoder, setup: Pretraining, device: Device, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "heads").initial_seed())
        return setup.objective.learner(net, net.dim(), setup.plan.batch).to(device.torch)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images uint8 N,3,H,W in [0,1], from at most 10,000 of them."""
    step = max(1, len(images) // 10_000)
    levels = np.stack([np.bincount(images[::step, c].ravel(), minlength=256) for c in range(3)]).astype(np.float64)
    share = levels / levels.sum(1, keepdims=True)
    grey = np.arange(256) / 255
    mean = share @ grey
    std = np.sqrt(np.maximum(share @ grey**2 - mean**2, 0))
    return tuple(np.round(mean, 4).tolist()), tuple(np.maximum(np.round(std, 4), 0.01).tolist())


def channels_last_pays(device: Device) -> bool:
    """Tell whether channels-last convolutions pay: on GPUs and CPUs with AMX; elsewhere it is within a few percent."""
    if device.kind == "cpu":
        return device.precision == "bf16" and bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    return device.kind == "cuda"


def _knn_remark(net: ImageEncoder, monitor: Monitor, device: Device, seed: int) -> Callable[[int], str]:
    """Report, after each epoch, the kNN accuracy of the monitor's second half given its first (k 200 or less)."""
    order = torch.randperm(len(monitor.labels), generator=generator(seed, "monitor"))
    labels = torch.from_numpy(np.array(monitor.labels))[order].to(device.torch)
    images = np.ascontiguousarray(monitor.images[order.numpy()])
    half = len(labels) // 2

    def remark(epoch: int) -> str:
        feats = embed(net, images, device)
        guess = knn_predict(feats[:half], labels[:half], feats[half:], monitor.classes, k=min(200, half // 10 + 1))
        return f", kNN accuracy {float((guess == labels[half:]).float().mean()):.3f}"

    return remark
