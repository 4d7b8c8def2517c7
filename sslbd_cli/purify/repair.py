"""What purifiers of encoders share: the training plan, losses against the original, and self-supervised recovery."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.core import checks
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed
from sslbd_cli.core.loader import Subset
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import linear_cka, mean_cosine
from sslbd_cli.core.train import Fit, Terms, freeze
from sslbd_cli.core.training_keys import TrainingKeys
from sslbd_cli.core.watch import Ticker
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import cosine_loss, mlp, nt_xent
from sslbd_cli.purify.contract import EncoderPurifier, Supplies

SAMPLE = 2048  # clean images to compare a purified encoder with the original on


@dataclass(frozen=True)
class Outcome:
    """A purified encoder and its cost. images_seen: images, counted each time they are seen.

    cosine, cka: similarity of its embeddings of n clean images to the original's. restored: with a witness, the mean
    cosine between triggered images' embeddings and the original's clean ones, before and after.
    """

    encoder: ImageEncoder
    images_seen: int
    seconds: float
    n: int
    cosine: float
    cka: float
    restored: tuple[float, float] | None

    def __str__(self) -> str:
        alike = f"cosine {self.cosine:.3f}, CKA {self.cka:.3f}"
        cost = f"{self.images_seen} images seen in {self.seconds:.1f} s"
        return f"{cost}; to the original on {self.n} clean images: {alike}"


def purify(method: EncoderPurifier, net: ImageEncoder, supplies: Supplies, session: Session) -> Outcome:
    """Purify an encoder and compare it with the original.

    Raises InputError for a single image, and Unsound if the features collapsed (F02).
    """
    if len(supplies.images) < 2:
        raise InputError("a single image is too few to purify with, because it cannot be contrasted; give at least 2")
    images_seen, start, sample = 0, time.monotonic(), Subset(supplies.images, spread(len(supplies.images), SAMPLE))

    def counting(total: int, unit: str, label: str) -> AbstractContextManager[Ticker]:
        nonlocal images_seen
        images_seen += total if unit == "images" else 0
        return session.watch(total, unit, label)

    purified = method.clean(net, supplies, replace(session, watch=counting))
    seconds = time.monotonic() - start
    before, after = embed(net, sample, session), embed(purified, sample, session)
    checks.not_collapsed(after)
    restored = None
    if (witness := supplies.witness) is not None:
        first, last = (mean_cosine(before, embed(each, sample, session, witness.stamp)) for each in (net, purified))
        restored = first, last
    alike = mean_cosine(before, after), linear_cka(before, after)
    return Outcome(purified, images_seen, seconds, len(sample), *alike, restored)


def original_of(encoder: ImageEncoder, device: Device) -> ImageEncoder:
    """Return a frozen copy of the encoder on the device, in eval mode, for a student to learn from."""
    copy = encoder.twin().to(device.torch).eval()
    freeze(copy)
    return copy


def projector(dim: int, out: int, session: Session) -> nn.Module:
    """Build a new projector of two layers with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session.generator("projector").initial_seed())
        return mlp(dim, dim, out).to(session.device.torch)


def relational(teacher_feats: Tensor, student_feats: Tensor, temperature: float) -> Tensor:
    """Return the mean KL(p || q) of the rows' softmaxes over cosines to the other rows: p of taught B,D, q of learned.

    A row is not compared with itself, because this similarity of 1 would dominate the softmax.
    """
    with torch.autocast(teacher_feats.device.type, enabled=False):
        p, q = (_relations(feats.float(), temperature) for feats in (teacher_feats, student_feats))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def _relations(feats: Tensor, temperature: float) -> Tensor:
    unit, count = F.normalize(feats, dim=1), len(feats)
    cosines = (unit @ unit.T / temperature).flatten()
    # count + 1 numbers lie from one number of the diagonal to the next; a mask would make the host wait
    others = cosines[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
    return F.log_softmax(others, dim=1)


def attention(maps: Tensor) -> Tensor:
    """Return the attention maps of maps B,C,H,W: sums of squares over channels, scaled to length 1: B,H*W."""
    energy = maps.float().square().sum(1).flatten(1)
    lengths: Tensor = energy.norm(dim=1, keepdim=True)
    return energy / (lengths + 1e-6)


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(EncoderPurifier):
    """Base of purifiers that train on clean images without labels. It holds their objective."""

    objective: str = key("simclr", "simclr: contrast two views (NT-Xent); consistency: embed a view as the original "
                                   "embeds the whole image", choices=("simclr", "consistency"))  # fmt: skip

    @property
    def is_faithful(self) -> bool:
        return self.objective == "consistency"


@dataclass(frozen=True, kw_only=True)
class Recovery(TrainingKeys, SelfSupervised):
    """Base of purifiers that continue to train the encoder itself, without labels."""

    weight_decay: float = key(0.0001, "weight decay", low=0, expert=True)
    temperature: float = key(0.5, "temperature of NT-Xent", low=0.001)

    def recovery(self, pair: tuple[ImageEncoder, ImageEncoder], images: np.ndarray, session: Session) -> Fit:
        """Prepare the training of the second of (original, student), both on the device, on images uint8 N,3,H,W."""
        original, student = pair
        pool, recipe = session.pool(images), Recipe(size=student.size)
        module = nn.ModuleList([student, projector(student.dim(), 128, session)])

        def contrast(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            views = torch.cat([augment(batch, recipe, gen), augment(batch, recipe, gen)])
            return {"loss": nt_xent(module[1](student(views)).float(), self.temperature)}

        def follow(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            with torch.no_grad():
                teacher_feats = original(batch)
            return {"loss": cosine_loss(student(augment(batch, recipe, gen)), teacher_feats)}

        loss = contrast if self.objective == "simclr" else follow
        plan = self.plan(len(pool), weight_decay=self.weight_decay)
        return Fit(module, loss, len(pool), plan, session)
