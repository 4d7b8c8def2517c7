"""What purifiers of encoders share: the training plan, losses against the original, and self-supervised recovery."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.badencoder.tail import Tail
from sslbd_cli.core import checks
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import Device, seed_torch
from sslbd_cli.core.features import embed, need_distinct
from sslbd_cli.core.loader import Subset
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import linear_cka, mean_cosine
from sslbd_cli.core.train import Fit, Loss, Plan, Terms, freeze
from sslbd_cli.core.watch import Ticker
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import cosine_loss, mlp, nt_xent
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.training_keys import TrainingKeys

SAMPLE = 2048  # clean images to compare a purified encoder with the original on


@dataclass(frozen=True)
class Cleaned:
    """A purified encoder and its cost. images_seen: images, counted each time they are seen."""

    encoder: ImageEncoder
    images_seen: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.images_seen} images seen in {self.seconds:.1f} s"


@dataclass(frozen=True)
class Change:
    """What purifying changed: cosine and CKA of n clean images' embeddings with the original's.

    restored: with a witness, the mean cosine between triggered images' embeddings and the original's clean ones, before
    and after.
    """

    n: int
    cosine: float
    cka: float
    restored: tuple[float, float] | None

    def __str__(self) -> str:
        return f"to the original on {self.n} clean images: cosine {self.cosine:.3f}, CKA {self.cka:.3f}"


def purify(method: EncoderPurifier, net: ImageEncoder, supplies: Supplies, session: Session) -> Cleaned:
    """Purify an encoder. Raises InputError for a single image, and for an encoder that embeds all images alike."""
    if len(supplies.images) < 2:
        raise InputError("a single image is too few to purify with, because it cannot be contrasted; give at least 2")
    need_distinct(net, supplies.images, session)
    images_seen, start = 0, time.monotonic()

    def counting(total: int, unit: str, label: str) -> AbstractContextManager[Ticker]:
        nonlocal images_seen
        images_seen += total if unit == "images" else 0
        return session.watch(total, unit, label)

    purified = method.clean(net, supplies, replace(session, watch=counting))
    return Cleaned(purified, images_seen, time.monotonic() - start)


def compare(net: ImageEncoder, purified: ImageEncoder, supplies: Supplies, session: Session) -> Change:
    """Compare a purified encoder with the original. Raises Unsound if its features collapsed (F02)."""
    sample = Subset(supplies.images, spread(len(supplies.images), SAMPLE))
    before, after = embed(net, sample, session), embed(purified, sample, session)
    checks.not_collapsed(after)
    restored = None
    if (witness := supplies.witness) is not None:
        first, last = (mean_cosine(before, embed(each, sample, session, witness.stamp)) for each in (net, purified))
        restored = first, last
    return Change(len(sample), mean_cosine(before, after), linear_cka(before, after), restored)


def training(module: nn.Module, loss: Loss, supplies: Supplies, plan: Plan, session: Session) -> Fit:
    """Return the training of a purifier on all images. `module` holds all that changes, so the checkpoint is whole."""
    fit = Fit(module, loss, len(supplies.images), plan, session)
    fit.checkpoint = supplies.checkpoint
    return fit


def original_of(encoder: ImageEncoder, device: Device) -> ImageEncoder:
    """Return a frozen copy of the encoder on the device, in eval mode, for a student to learn from."""
    copy = encoder.twin().to(device.torch).eval()
    freeze(copy)
    return copy


def trial(net: ImageEncoder) -> Tensor:
    """Return two blank images of the encoder's size on its device, to learn what a training step takes."""
    return torch.zeros(2, 3, net.size, net.size, device=net.mean.device)


def projector(dim: int, out: int, session: Session) -> nn.Module:
    """Build a new projector of two layers with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(session.generator("projector"))
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

    def recovery(
        self, pair: tuple[ImageEncoder, ImageEncoder], supplies: Supplies, session: Session, last: int = 0
    ) -> Fit:
        """Prepare the training of the second of (original, student), both on the device, on the supplied images.

        last: how many of the student's last stages are trained (see Tail); 0: all.
        """
        original, student = pair
        pool, recipe, tail = session.pool(supplies.images), Recipe(size=student.size), Tail(student, last)
        rows_at_once = step_rows(tail, tail.enter(trial(student)), session)
        module = nn.ModuleList([student, projector(student.dim(), 128, session)])

        def contrast(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            views = torch.cat([augment(batch, recipe, gen), augment(batch, recipe, gen)])
            feats = tail.embed(views, rows_at_once)
            return {"loss": nt_xent(module[1](feats).float(), self.temperature)}

        def follow(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            with torch.no_grad():
                teacher_feats = in_portions(original, batch, rows_at_once)
            return {"loss": cosine_loss(tail.embed(augment(batch, recipe, gen), rows_at_once), teacher_feats)}

        loss = contrast if self.objective == "simclr" else follow
        fit = training(module, loss, supplies, self.plan(len(pool), weight_decay=self.weight_decay), session)
        fit.begin_epoch = lambda: (module.train(), tail.train())
        return fit
