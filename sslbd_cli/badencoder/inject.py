"""What attacks on encoders share: a victim tuned beside what the clean encoder says, and the course of the loss."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.badencoder.contract import Attack, Injected, Plot
from sslbd_cli.badencoder.scene import AttackScene, Seen
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Fit, Plan, Terms
from sslbd_cli.plugin import key


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
    stages: int = key(0, "number of last stages to train, which is faster; 0: the whole encoder (paper)", low=0)

    @abstractmethod
    def course(self) -> LossCourse:
        """Return how the loss is computed from a step's embeddings, and how it changes over the epochs."""

    def weighed(self, terms: Terms) -> Tensor:
        """Return lambda0 * effectiveness + lambda1 * reference + lambda2 * utility."""
        return (
            self.lambda0 * terms["effectiveness"] + self.lambda1 * terms["reference"] + self.lambda2 * terms["utility"]
        )

    def run(
        self, encoder: ImageEncoder, plot: Plot, session: Session, checkpoint: Checkpoint | None = None
    ) -> Injected:
        victim = encoder.twin().to(session.device.torch).eval().requires_grad_(True)
        freeze_batch_norm(victim)  # before the optimiser collects the trained parameters
        scene, course = AttackScene(victim, plot, session, self.stages, self.copies), self.course()
        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(plot.shadow)), lr=self.lr, optimiser=self.optimiser,
                    weight_decay=self.weight_decay, schedule=self.schedule)  # fmt: skip
        stamp_gen = session.generator("stamp", 0)

        def begin() -> None:
            nonlocal stamp_gen
            freeze_batch_norm(victim.train())
            stamp_gen = session.generator("stamp", course.epoch)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            embedded = scene.look(rows, gen, stamp_gen)
            with torch.autocast(
                session.device.kind, enabled=False
            ):  # compute in fp32, because products of unit vectors are compared, not only trained
                return course.loss(embedded, gen)

        fit = Fit(nn.ModuleDict({"victim": victim, "course": course}), loss, len(plot.shadow), plan, session)
        fit.begin_epoch, fit.end_epoch, fit.checkpoint = begin, course.finish, checkpoint
        terms = fit.run(self.name)
        return Injected(victim.eval(), terms, course.nearest)


class LossCourse(nn.Module):
    """How an attack computes its loss. This one is the weighted sum of BadEncoder's terms in every epoch.

    state: names of the numbers that change over the epochs, which a checkpoint stores.
    """

    state: tuple[str, ...] = ("epoch",)

    def __init__(self, attack: EncoderTuning, nearest: bool) -> None:
        super().__init__()
        self.attack, self.nearest, self.epoch = attack, nearest, 0

    def loss(self, embedded: Seen, gen: torch.Generator) -> Terms:
        """Return the terms of a step, including `loss`. gen is on the device."""
        terms = embedded.terms(self.nearest)
        return {"loss": self.attack.weighed(terms), **terms}

    def finish(self, terms: dict[str, float]) -> None:
        """Receive an epoch's mean terms."""
        self.epoch += 1

    def get_extra_state(self) -> Tensor:
        """Return the numbers of `state` as float64."""
        return torch.tensor([getattr(self, name) for name in self.state], dtype=torch.float64)

    def set_extra_state(self, numbers: Tensor) -> None:
        for name, number in zip(self.state, numbers.tolist(), strict=True):
            setattr(self, name, type(getattr(self, name))(number))


def freeze_batch_norm(net: nn.Module) -> nn.Module:
    """Freeze batch normalisation exactly: statistics by eval mode, affine parameters by turning gradients off.

    As in the released codes, other norms stay trainable, so nothing of a vision transformer is frozen (it has only
    layer norms). A layer norm sees one image at a time, so rows still do not influence one another.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return net
