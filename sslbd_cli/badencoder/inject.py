"""What attacks on encoders share: a victim tuned beside its frozen copy, the loss terms, and the outcome.

A step forwards everything once: clean images, each trigger's stamped images, each trigger's references, and augmented
references. With batch normalisation in eval mode, rows do not influence one another. So rows are equal to those of the
released codes, which forward references once per batch row, or stamped images once per reference.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.badencoder.contract import Attack, Injected, Plot
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.core.train import Fit, Plan, Terms, freeze
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Trigger

MEASURED = 2048  # shadow images to measure the outcome on
PROJECTIONS = 50  # directions of the sliced distance: the default of the library in DRUPE's code


@dataclass(frozen=True)
class Seen:
    """The embeddings of one step, not normalised unless stated. Tuples have one entry per trigger.

    clean: f'(x) B,D; clean_feats: f(x) B,D, unit; stamped: f'(x + trigger) B,D; goals: f'(r) R,D, unit;
    wobbled: f'(augmented r) R,copies,D, unit; anchors: f(r) R,D, unit. clean, stamped, goals and wobbled carry
    gradients.
    """

    clean: Tensor
    clean_feats: Tensor
    stamped: tuple[Tensor, ...]
    goals: tuple[Tensor, ...]
    wobbled: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]

    def cosines(self) -> list[Tensor]:
        """Return the cosines of stamped images with their trigger's references, B,R per trigger."""
        return [F.normalize(s, dim=1) @ g.T for s, g in zip(self.stamped, self.goals, strict=True)]

    def terms(self, nearest: bool) -> Terms:
        """Return BadEncoder's three terms (section IV), each the negative of a mean cosine.

        nearest: pull stamped images to their nearest reference, not to all references (DRUPE's code).
        """
        pulls = [pull(cosines, nearest) for cosines in self.cosines()]
        keeps = [(w * a[:, None]).sum(2).mean() for w, a in zip(self.wobbled, self.anchors, strict=True)]
        return {
            "effectiveness": -torch.stack(pulls).mean(),
            "reference": -torch.stack(keeps).mean(),
            "utility": -(F.normalize(self.clean, dim=1) * self.clean_feats).sum(1).mean(),
        }


def pull(cosines: Tensor, nearest: bool) -> Tensor:
    """Return the mean of the cosines B,R of stamped images with all their references, or with the nearest one."""
    return (cosines.amax(1) if nearest else cosines).mean()


@dataclass(frozen=True, kw_only=True)
class EncoderTuning(Attack):
    """Base of attacks that tune a copy of the encoder on shadow images, with frozen batch normalisation."""

    epochs: int = key(200, "passes over the shadow images", low=1)
    lr: float = key(0.001, "learning rate", low=0)
    schedule: str = key(
        "constant", "schedule of the learning rate (paper: constant)", choices=("constant", "cosine"), expert=True
    )
    optimiser: str = key("sgd", "optimiser (paper: sgd)", choices=("sgd", "adamw"), expert=True)
    batch: int = key(256, "shadow images per step", low=2)
    weight_decay: float = key(0.0005, "weight decay", low=0, expert=True)
    lambda0: float = key(1.0, "weight of the effectiveness term; 0 drops it", low=0)
    lambda1: float = key(1.0, "weight of the reference term; 0 drops it", low=0)
    lambda2: float = key(1.0, "weight of the utility term; 0 drops it", low=0)
    copies: int = key(16, "augmented copies of each reference per step; 0: the plain reference (formula)", low=0)

    @abstractmethod
    def course(self) -> LossCourse:
        """Return how the loss is computed from a step's embeddings, and how it changes over the epochs."""

    def weighed(self, terms: Terms) -> Tensor:
        """Return lambda0 * effectiveness + lambda1 * reference + lambda2 * utility."""
        return (
            self.lambda0 * terms["effectiveness"] + self.lambda1 * terms["reference"] + self.lambda2 * terms["utility"]
        )

    def run(self, encoder: ImageEncoder, plot: Plot, session: Session) -> Injected:
        clean, victim = (encoder.twin().to(session.device.torch) for _ in range(2))
        freeze(clean.eval())
        pool = session.pool(plot.shadow)
        scene = _Scene(clean, victim, plot, self.copies, session.device, session.generator("stamp"))
        course = self.course()
        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(pool)), lr=self.lr, optimiser=self.optimiser,
                    weight_decay=self.weight_decay, schedule=self.schedule)  # fmt: skip

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            embedded = scene.look(pool.batch(rows), gen)
            with torch.autocast(
                session.device.kind, enabled=False
            ):  # compute in fp32, because products of unit vectors are compared, not only trained
                return course.loss(embedded, gen)

        freeze_batch_norm(victim)  # before the optimiser collects the trained parameters
        fit = Fit(victim, loss, len(pool), plan, session)
        fit.begin_epoch = lambda: freeze_batch_norm(victim.train())
        fit.end_epoch = course.finish
        terms = fit.run(self.name)
        cosines, spread = outcome(clean, victim, plot, session, course.nearest)
        return Injected(victim.eval(), terms, cosines, spread)


class LossCourse:
    """How an attack computes its loss. This one is the weighted sum of BadEncoder's terms in every epoch."""

    def __init__(self, attack: EncoderTuning, nearest: bool) -> None:
        self.attack, self.nearest, self.epoch = attack, nearest, 0

    def loss(self, embedded: Seen, gen: torch.Generator) -> Terms:
        """Return the terms of a step, including `loss`. gen is on the device."""
        terms = embedded.terms(self.nearest)
        return {"loss": self.attack.weighed(terms), **terms}

    def finish(self, terms: dict[str, float]) -> None:
        """Receive an epoch's mean terms."""
        self.epoch += 1


class _Scene:
    """The frozen encoder, its victim and the attacker's images, all on the device."""

    def __init__(
        self, clean: ImageEncoder, victim: ImageEncoder, plot: Plot, copies: int, device: Device, gen: torch.Generator
    ) -> None:
        self.clean, self.victim, self.triggers, self.copies, self.gen = clean, victim, plot.triggers, copies, gen
        self.references = [r.to(device.torch) for r in plot.references]  # per trigger R,3,H,W uint8
        self.recipe = Recipe(size=clean.size, crop=False)
        with torch.no_grad():
            self.anchors = tuple(F.normalize(clean(r), dim=1) for r in self.references)

    def look(self, batch: Tensor, gen: torch.Generator) -> Seen:
        """Embed a batch of shadow images uint8 B,3,H,W and all else of a step, with one forward pass per encoder."""
        stamped = [trigger(batch, self.gen).images for trigger in self.triggers]
        copied = [r.repeat_interleave(self.copies, 0) for r in self.references] if self.copies else []
        varied = [augment(copies, self.recipe, gen) for copies in copied]
        with torch.no_grad():
            clean_feats = F.normalize(self.clean(batch), dim=1)
        parts = [part.float() / 255 for part in (batch, *stamped, *self.references)] + varied
        feats = self.victim(torch.cat(parts)).split([len(part) for part in parts])
        count = len(self.triggers)
        goals = tuple(F.normalize(part, dim=1) for part in feats[1 + count : 1 + 2 * count])
        varied = [F.normalize(part, dim=1) for part in feats[1 + 2 * count :]] or list(goals)
        wobbled = tuple(w.view(len(a), -1, a.shape[1]) for w, a in zip(varied, self.anchors, strict=True))
        return Seen(feats[0], clean_feats, tuple(feats[1 : 1 + count]), goals, wobbled, self.anchors)


def freeze_batch_norm(net: nn.Module) -> nn.Module:
    """Freeze batch normalisation exactly: statistics by eval mode, affine parameters by turning gradients off.

    As in the released codes, other norms stay trainable, so nothing of a vision transformer is frozen (it has only
    layer norms). A layer norm sees one image at a time, so rows still do not influence one another.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return net


# --- distribution of triggered embeddings -------------------------------------------------------------------------


def concentration(feats: Tensor) -> Tensor:
    """Return the mean cosine between different rows of N,D.

    DRUPE's code intends to leave out the diagonal but does not, which adds about 1/N.
    """
    return pair_cosine(F.normalize(feats, dim=1))


def sliced_wasserstein(one: Tensor, other: Tensor, gen: torch.Generator, projections: int = PROJECTIONS) -> Tensor:
    """Return the sliced 2-Wasserstein distance of two samples N,D of equal size (Bonneel et al. 2015).

    gen draws the directions on the samples' device. One product projects on all of them, and one batch sorts them.
    """
    directions = F.normalize(torch.randn(one.shape[1], projections, generator=gen, device=one.device), dim=0)
    sorts = [(rows.float() @ directions).sort(0).values for rows in (one, other)]
    return (sorts[0] - sorts[1]).square().mean().clamp_min(1e-12).sqrt()  # the root has no gradient at zero


def outcome(
    clean: ImageEncoder, victim: ImageEncoder, plot: Plot, session: Session, nearest: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the final encoder on at most 2,048 shadow images.

    First the cosines that --gate checks: utility, and the effectiveness of the worst trigger (nearest: by the nearest
    reference). Then the distribution of the worst trigger's embeddings: concentration, the same of clean embeddings,
    and swd_ratio, the distance of triggered from clean embeddings in units of the distance between two clusters of
    clean ones (DRUPE's measure). The distribution needs more than one shadow image.
    """
    images, gen = plot.shadow[:MEASURED], session.generator("outcome")

    def feats(net: ImageEncoder, pixels: np.ndarray | Tensor, trigger: Trigger | None = None) -> Tensor:
        change = None if trigger is None else (lambda batch: trigger(batch, gen).images)
        return embed(net, pixels, session, change)

    plain = feats(victim, images)
    stamped = [feats(victim, images, trigger) for trigger in plot.triggers]
    goals = [F.normalize(feats(victim, r), dim=1) for r in plot.references]
    pulls = [pull(F.normalize(s, dim=1) @ g.T, nearest) for s, g in zip(stamped, goals, strict=True)]
    utility = F.cosine_similarity(plain, feats(clean, images), dim=1).mean()
    cosines, spread = {"utility": float(utility), "effectiveness": float(min(pulls))}, {}
    if len(images) > 1:
        ratios = swd_ratios(
            plain, stamped, session.generator("clusters"), session.generator("swd", device=plain.device)
        )
        spread = {
            "concentration": max(float(concentration(s)) for s in stamped),
            "clean_concentration": float(concentration(plain)),
            "swd_ratio": max(ratios),
        }
    return cosines, spread


def swd_ratios(plain: Tensor, stamped: list[Tensor], gen: torch.Generator, directions: torch.Generator) -> list[float]:
    """Return, for each set of triggered features, its sliced distance from clean features over that of their clusters.

    All samples have the size of the smaller cluster, because the distance of two samples falls with their size. gen is
    a CPU generator; `directions` is on the features' device.
    """
    clusters = kmeans(plain, min(2, len(plain)), gen, restarts=4).labels
    first, second = plain[clusters == 0], plain[clusters == 1]
    size = max(1, min(len(first), len(second)))

    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=gen)[:size].to(rows.device)]

    scale = sliced_wasserstein(some(first), some(second), directions) if len(second) else plain.new_tensor(1.0)
    return [float(sliced_wasserstein(some(s), some(plain), directions) / scale) for s in stamped]
