"""Tune queries and small networks together, so that they tell shadow encoders apart (meta-classifiers, MNTD).

Several are tuned at once. Each has its own queries and its own choice of the shadows, so that each shadow is held out
of some. An encoder answers all their queries in one batch. Encoders take turns, which on a CPU is a tenth faster than
one batched network of stacked weights (3,100 against 2,800 images a second, `tiny`, 12 shadows).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import Device
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms, freeze
from sslbd_cli.core.watch import unwatched
from sslbd_cli.detect.gradients import Room, embed_for_gradients

FLOOR = 0.1  # least deviation that answers are scaled by, as a share of the mean deviation
TINY = 1e-6
NU = 0.1  # of the one-class loss: share of the shadows that may lie outside


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How meta-classifiers are tuned. features: gram or raw. one_class: learn on clean shadows alone.

    room: how many queries go through an encoder at once; None: all of them.
    """

    features: str = "gram"
    one_class: bool = False
    hidden: int = 20
    steps: int = 100
    lr: float = 0.001
    room: Room | None = None


@dataclass(frozen=True)
class Examples:
    """Shadow encoders, frozen. is_backdoored: bool S. members: bool K,S, the shadows that each meta-classifier learns
    on.
    """

    encoders: tuple[ImageEncoder, ...]
    is_backdoored: Tensor
    members: Tensor

    @functools.cached_property
    def learners(self) -> list[Tensor]:
        """The meta-classifiers that learn on each shadow, int64."""
        return [of.nonzero().flatten() for of in self.members.T]

    @functools.cached_property
    def shadows(self) -> list[Tensor]:
        """The shadows that each meta-classifier learns on, int64."""
        return [of.nonzero().flatten() for of in self.members]


def freeze_twin(encoder: ImageEncoder, device: Device) -> ImageEncoder:
    """Return a copy on the device, in eval mode, whose weights take no gradients."""
    net = encoder.twin().to(device.torch).eval()
    freeze(net)
    return net


def answers(encoder: ImageEncoder, queries: Tensor, features: str, room: Room | None = None) -> Tensor:
    """Return an encoder's answers to K,N queries (K,N,3,H,W in [0,1]): K,I numbers.

    raw: the unit embeddings, I = N D, which have a meaning only if encoders share their axes. gram: the cosines between
    any two of the N, I = N (N - 1) / 2, which no rotation of the embedding changes.
    """
    count, number = queries.shape[:2]
    pixels = queries.flatten(0, 1)
    feats = encoder(pixels) if room is None else embed_for_gradients(encoder, pixels, room)
    unit = F.normalize(feats, dim=1).view(count, number, -1)  # K,N,D
    if features == "raw":
        return unit.flatten(1)
    first, second = torch.triu_indices(number, number, 1, device=unit.device)
    cosines: Tensor = unit @ unit.mT
    return cosines[:, first, second]


def noise_like(images: np.ndarray, count: int, gen: torch.Generator) -> Tensor:
    """Draw queries as noise with mean and deviation of images uint8 M,3,H,W: float32 count,3,H,W in [0,1]."""
    mean, spread = (torch.from_numpy(of(images, (0, 2, 3))).float()[:, None, None] / 255 for of in (np.mean, np.std))
    return (torch.randn(count, *images.shape[1:], generator=gen) * spread + mean).clamp(0, 1)


def some_of(images: np.ndarray, count: int, gen: torch.Generator) -> Tensor:
    """Draw queries from images uint8 M,3,H,W: float32 count,3,H,W in [0,1]."""
    return torch.from_numpy(images[torch.randint(len(images), (count,), generator=gen).numpy()]).float() / 255


class MetaClassifiers(nn.Module):
    """K meta-classifiers: queries K,N,3,H,W, and linear, ReLU, linear on the standardised answers."""

    def __init__(self, starts: Tensor, width: int, hidden: int, gens: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.queries = nn.Parameter(starts.clone())
        layers = [_layers(width, hidden, gen) for gen in gens]
        inner, shift, outer, bias = (torch.stack(part).to(starts.device) for part in zip(*layers, strict=True))
        self.inner, self.shift = nn.Parameter(inner), nn.Parameter(shift)  # K,I,hidden; K,1,hidden
        self.outer, self.bias = nn.Parameter(outer), nn.Parameter(bias)  # K,hidden,1; K,1,1

    def forward(self, responses: Tensor) -> Tensor:
        """Score standardised answers K,S,I: K,S."""
        hidden = F.relu(responses @ self.inner + self.shift)
        return (hidden @ self.outer + self.bias).squeeze(2)


def _layers(width: int, hidden: int, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the weights of both linear layers as torch's nn.Linear does."""

    def uniform(*shape: int, fan: int) -> Tensor:
        return torch.empty(shape).uniform_(-(fan**-0.5), fan**-0.5, generator=gen)

    return (
        uniform(width, hidden, fan=width),
        uniform(1, hidden, fan=width),
        uniform(hidden, 1, fan=hidden),
        uniform(1, 1, fan=hidden),
    )


def ask_members(classifiers: MetaClassifiers, examples: Examples, features: str, room: Room | None = None) -> Tensor:
    """Ask each shadow the queries of the meta-classifiers that learn on it: K,S,I, zeros elsewhere."""
    rows = examples.learners
    parts = [
        answers(net, classifiers.queries[row], features, room) if len(row) else None
        for net, row in zip(examples.encoders, rows, strict=True)
    ]
    width = next(part.shape[1] for part in parts if part is not None)
    responses = classifiers.queries.new_zeros(*examples.members.shape, width)
    for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
        if part is not None:
            responses[row, number] = part
    return responses


def scale(responses: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation K,1,I of answers K,S,I over the shadows that each meta-classifier learns on.

    Cosines lie close together, in another range for each query. Without scaling, the network would not tell them apart.
    """
    mask = members[:, :, None].to(responses)
    count = mask.sum(1, keepdim=True)
    mean = (responses * mask).sum(1, keepdim=True) / count
    spread = (((responses - mean) * mask).square().sum(1, keepdim=True) / count + TINY**2).sqrt()
    return mean, torch.maximum(spread, FLOOR * spread.mean(2, keepdim=True)) + TINY


def two_class_loss(scores: Tensor, examples: Examples) -> Tensor:
    """Return the binary cross-entropy of scores K,S over the members, with equal weights of both kinds."""
    labels = examples.is_backdoored.to(scores).expand_as(scores)
    weights = torch.zeros_like(scores)
    for kind in (True, False):
        of_kind = examples.members & (examples.is_backdoored == kind)
        weights = weights + of_kind / (2 * of_kind.sum(1, keepdim=True).clamp(min=1))
    return F.binary_cross_entropy_with_logits(scores, labels, weights, reduction="sum")


def one_class_loss(classifiers: MetaClassifiers, scores: Tensor, examples: Examples) -> Tensor:
    """Return the one-class loss, summed over K: small weights, and scores of the members above a radius.

    1/2 |w|^2 + 1/2 |fc|^2 + mean(max(0, r - score)) / nu - r, where r is the nu-quantile of the members' scores.
    """
    total = scores.new_zeros(())
    for one, rows in zip(scores, examples.shadows, strict=True):
        own = one[rows]
        radius = own.detach().quantile(NU)
        total = total + F.relu(radius - own).mean() / NU - radius
    return total + (classifiers.inner.square().sum() + classifiers.outer.square().sum()) / 2


def tune(
    examples: Examples, classifiers: MetaClassifiers, tuning: Tuning, session: Session, tick: Callable[[], None]
) -> MetaClassifiers:
    """Tune queries and networks jointly by Adam, with all members in each step. Calls `tick` after each step.

    Queries are clipped to [0,1], so that they stay images. The arithmetic is fp32 at any precision of the device,
    because bf16 cannot tell cosines close to 1 apart.
    """

    def loss(rows: Tensor, gen: torch.Generator) -> Terms:
        responses = ask_members(classifiers, examples, tuning.features, tuning.room)
        mean, spread = scale(responses, examples.members)
        scores = classifiers((responses - mean) / spread)
        return {
            "loss": one_class_loss(classifiers, scores, examples)
            if tuning.one_class
            else two_class_loss(scores, examples)
        }

    def after(progress: float) -> None:
        with torch.no_grad():
            classifiers.queries.clamp_(0, 1)
        tick()

    count = len(examples.encoders)
    # all steps are one epoch, because the host waits for the device at the end of each epoch
    plan = Plan(epochs=1, batch=count, lr=tuning.lr, optimiser="adam", schedule="constant")
    fit = Fit(classifiers, loss, count * tuning.steps, plan, replace(session.exact(), watch=unwatched))
    fit.after_step = after
    fit.run("queries")
    return classifiers


@torch.no_grad()
def suspect(
    classifiers: MetaClassifiers, examples: Examples, encoder: ImageEncoder, tuning: Tuning
) -> tuple[Tensor, Tensor]:
    """Score the shadows, K,S, and the encoder, K, by tuned meta-classifiers; higher is more suspicious.

    The one-class score is the distance from the members' median, in either direction. Outside of what it has seen, the
    network extrapolates linearly, so that half of all outliers would score as more normal than usual.
    """
    responses = torch.stack(
        [answers(net, classifiers.queries, tuning.features, tuning.room) for net in (*examples.encoders, encoder)], 1
    )
    mean, spread = scale(responses[:, :-1], examples.members)
    scores = classifiers((responses - mean) / spread).double().cpu()
    if tuning.one_class:
        usual = [one[of].median() for one, of in zip(scores[:, :-1], examples.members.cpu(), strict=True)]
        scores = (scores - torch.stack(usual)[:, None]).abs()
    return scores[:, :-1], scores[:, -1]
