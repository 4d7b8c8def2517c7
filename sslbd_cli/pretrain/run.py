"""Self-supervised pre-training: from images to views to the objective. It never uses labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.captions import decode
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import checks, nets
from sslbd_cli.core.augment import Recipe, augment, compiled
from sslbd_cli.core.device import Device, seed_torch
from sslbd_cli.core.features import embed, knn_predict
from sslbd_cli.core.loader import Subset
from sslbd_cli.core.nets import Arch, ImageEncoder
from sslbd_cli.core.pixels import Pixels
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Fit, Plan, Terms
from sslbd_cli.errors import InputError
from sslbd_cli.language.tower import has_tower, load_joint
from sslbd_cli.pretrain.contract import Objective


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Hold everything that determines a pre-training except its data, device and seed.

    pixels: mean and std that the encoder normalises by; None: those of the images.
    """

    objective: Objective
    arch: Arch
    plan: Plan
    recipe: Recipe
    compiled: bool = False
    pixels: Pixels | None = None
    layout: str = "auto"  # channels-last: yes, no, or auto (where it is faster)
    initial: Encoder | None = None  # to go on from, instead of random weights


@dataclass(frozen=True)
class Monitor:
    """A labelled dataset to report kNN accuracy on, never trained on. images: uint8 N,3,H,W; labels: int64 N."""

    images: np.ndarray
    labels: np.ndarray
    classes: int


def pretrain(
    images: np.ndarray,
    setup: Pretraining,
    session: Session,
    checkpoint: Checkpoint | None = None,
    monitor: Monitor | None = None,
    captions: np.ndarray | None = None,
) -> ImageEncoder:
    """Train an encoder on unlabeled images uint8 N,3,H,W, and on captions uint8 N,L if the objective needs them.

    Raises Unsound if training diverges (F01) or the features collapse (F02), and InputError if the dataset is smaller
    than a batch or captions are missing. It has eight parameters; the last three are optional.
    """
    if not setup.objective.captions:
        captions = None
    elif captions is None:
        raise InputError(f"{setup.objective.name} needs a caption of each image, and there are none")
    net = build(images, setup, session)
    learner = _learner(net, setup, session)
    pool = session.pool(images)
    views = _views(setup)
    texts = [session.pool(_tokens(setup.objective, learner, captions, session))] if captions is not None else []

    def loss(rows: torch.Tensor, gen: torch.Generator) -> Terms:
        batch = pool.batch(rows)
        inputs = [view(batch, gen) for view in views] + [text.batch(rows) for text in texts]
        return {"loss": setup.objective.loss(learner, inputs)}

    fit = Fit(learner, loss, len(images), setup.plan, session)
    fit.after_step = lambda progress: setup.objective.after_step(learner, progress)
    fit.begin_epoch = lambda: setup.objective.begin_epoch(learner.train(), fit.epoch)
    fit.checkpoint = checkpoint
    fit.vet = _collapse_watch(net, images, setup.plan.epochs, session)
    if monitor is not None:
        fit.remark = _knn_remark(net, monitor, session)
    fit.run(str(setup.objective.name))
    net.parts |= setup.objective.kept_parts(learner)
    return net.eval()


def _tokens(objective: Objective, learner: nn.Module, captions: np.ndarray, session: Session) -> np.ndarray:
    """Return the tokens of all captions, int32 N,L. Say how many captions are longer than the tower reads."""
    with session.work(len(captions), "captions", "tokens") as ticker:
        read = objective.tokens(learner, decode(captions))
        ticker.advance(len(captions))
        if read.cut.any():
            length = read.ids.shape[1]
            ticker.note(
                f"{int(read.cut.sum())} of {len(captions)} captions have more than {length} tokens and are cut off"
            )
    return read.ids


def build(images: np.ndarray, setup: Pretraining, session: Session) -> ImageEncoder:
    """Build the encoder on the device, with random weights or those of the setup's initial encoder.

    Its normalisation is the setup's, or that of the images; an initial encoder keeps its own.
    """
    if setup.initial is not None:
        net = nets.load(setup.initial).train()
        if has_tower(setup.initial) and setup.objective.captions:
            load_joint(net, setup.initial)
    else:
        mean, std = setup.pixels or channel_statistics(images)
        net = nets.new(setup.arch, images.shape[-1], mean, std, session.generator("weights"))
    net = net.to(session.device.torch)
    if setup.layout == "yes" or (setup.layout == "auto" and channels_last_pays(session.device)):
        net = net.to(memory_format=torch.channels_last)
    if setup.compiled:
        net.compile()
    return net


def _views(setup: Pretraining) -> list[Callable[[torch.Tensor, torch.Generator], torch.Tensor]]:
    recipes = setup.objective.recipes(setup.recipe)
    if setup.compiled:
        return [compiled(recipe) for recipe in recipes]
    return [lambda images, gen, recipe=recipe: augment(images, recipe, gen) for recipe in recipes]  # type: ignore[misc]


def _learner(net: ImageEncoder, setup: Pretraining, session: Session) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        seed_torch(session.generator("heads"))
        return setup.objective.learner(net, net.dim(), setup.plan.batch).to(session.device.torch)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images uint8 N,3,H,W in [0,1], from at most 10,000 images."""
    step = max(1, len(images) // 10_000)
    levels = np.zeros((3, 256))
    for part in paging.parts(images[::step]):
        levels += [np.bincount(images[::step, c][part].ravel(), minlength=256) for c in range(3)]
    share = levels / levels.sum(1, keepdims=True)
    grey = np.arange(256) / 255
    mean = share @ grey
    std = np.sqrt(np.maximum(share @ grey**2 - mean**2, 0))
    return tuple(np.round(mean, 4).tolist()), tuple(np.maximum(np.round(std, 4), 0.01).tolist())


def channels_last_pays(device: Device) -> bool:
    """Return whether channels-last convolutions are faster: on GPUs and CPUs with AMX. Elsewhere it hardly matters."""
    if device.kind == "cpu":
        return device.precision == "bf16" and bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    return device.kind == "cuda"


def _collapse_watch(net: ImageEncoder, images: np.ndarray, epochs: int, session: Session) -> Callable[[int], bool]:
    """Return a check, run after each epoch, of whether all images are embedded alike; such a state is never saved.

    One such epoch may pass. Two in a row, or the last epoch, raise Unsound (F02).
    """
    sample = Subset(images, np.arange(0, len(images), max(1, len(images) // 512))[:512])
    earlier = False

    def vet(epoch: int) -> bool:
        nonlocal earlier
        feats = embed(net, sample, session)
        collapsed = checks.collapsed(feats)
        if collapsed and (earlier or epoch + 1 == epochs):
            checks.not_collapsed(feats)
        earlier = collapsed
        return not collapsed

    return vet


def _knn_remark(net: ImageEncoder, monitor: Monitor, session: Session) -> Callable[[int], str]:
    """Report the kNN accuracy on the monitor's second half, given its first, after each epoch (k at most 200)."""
    order = torch.randperm(len(monitor.labels), generator=session.generator("monitor"))
    labels = torch.from_numpy(np.array(monitor.labels))[order].to(session.device.torch)
    images = Subset(monitor.images, order.numpy())
    half = len(labels) // 2

    def remark(epoch: int) -> str:
        feats = embed(net, images, session)
        guess = knn_predict(feats[:half], labels[:half], feats[half:], monitor.classes, k=min(200, half // 10 + 1))
        return f", kNN accuracy {float((guess == labels[half:]).float().mean()):.3f}"

    return remark
