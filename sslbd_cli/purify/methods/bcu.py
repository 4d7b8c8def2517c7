"""BCU (Pang et al., CVPR 2023) for encoders: reset weights at random and relearn them from the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.badencoder.tail import Tail
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import ImageEncoder, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.stages import stages
from sslbd_cli.core.train import Terms
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import cosine_loss
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import original_of, relational, training, trial
from sslbd_cli.purify.training_keys import TuningKeys

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class BCU(TuningKeys, EncoderPurifier):
    """Reset a part of the weights at random, most in the last stages, and relearn it from the original (BCU).

    Each weight of stage l is drawn anew with the stage's probability. For the five stages of a ResNet these are the
    paper's .01, .01, .03, .09 and .27 (its classifier's .10 has no counterpart). Norms are kept. Then the student
    learns the original's output on the same view of clean images. The paper's KL of class probabilities needs a
    classifier; here the loss is 2 - 2 cos of the embeddings plus the KL of their similarities within the batch. With
    `stages`, no weight of the frozen stages is drawn anew.
    """

    epochs: int = key(100)
    batch: int = key(256, "images per step", low=3)
    lr: float = key(0.01)
    optimiser: str = key("sgd", "optimiser (paper: sgd)", choices=("sgd", "adamw"), expert=True)
    weight_decay: float = key(0.0005, "weight decay", low=0, expert=True)
    forget: float = key(0.27, "probability that a weight of the last stage is drawn anew", low=0, high=1)
    factor: float = key(3.0, "factor by which this probability falls per stage towards the pixels", low=1, expert=True)
    least: float = key(0.01, "smallest probability in any stage", low=0, high=1, expert=True)
    relations: float = key(1.0, "weight of the similarities' KL", low=0)
    temperature: float = key(0.1, "temperature of the similarities' softmax", low=0.001)
    scale: float = key(0.2, "smallest share of the image in a crop", low=0.01, high=1, expert=True)

    @property
    def is_faithful(self) -> bool:
        return True

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        student = encoder.twin().requires_grad_(True)
        self.forget_weights(student, session.seed)
        student = student.to(session.device.torch)
        original = original_of(encoder, session.device)
        pool = session.pool(supplies.images)
        tail = Tail(student, self.stages).train()
        rows_at_once = step_rows(tail, tail.enter(trial(student)), session)
        recipe = Recipe(size=encoder.size, scale=(self.scale, 1.0), jitter=0.0, gray=0.0)  # crop and flip

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            view = augment(pool.batch(rows), recipe, gen)
            with torch.no_grad():
                teacher_feats = in_portions(original, view, rows_at_once)
            student_feats = tail.embed(view, rows_at_once)
            terms = {
                "cosine": cosine_loss(student_feats, teacher_feats),
                "relations": relational(teacher_feats, student_feats, self.temperature),
            }
            return {"loss": terms["cosine"] + self.relations * terms["relations"], **terms}

        plan = self.plan(len(pool), weight_decay=self.weight_decay)
        fit = training(student, loss, supplies, plan, session)
        fit.begin_epoch = tail.train
        fit.run(self.name)
        return student.eval()

    def chances(self, count: int) -> list[float]:
        """Return the probabilities of `count` stages, from the pixels up."""
        falling = [self.forget / self.factor**above for above in reversed(range(count))]
        return [min(1.0, max(chance, self.least)) for chance in falling]

    @torch.no_grad()
    def forget_weights(self, student: ImageEncoder, seed: int) -> None:
        """Draw weights anew with their stage's probability, except norms. All draws are made on the CPU."""
        mean, std = (tuple(b.flatten().tolist()) for b in (student.mean, student.std))
        gen = generator(seed, "fresh weights")
        fresh = stages(new(student.arch, student.size, mean, std, gen))
        parts = stages(student)
        rows = list(zip(parts, fresh, self.chances(len(parts)), strict=True))
        for stage, other, chance in rows[-self.stages :]:
            for name, module in stage.modules.items():
                if isinstance(module, NORMS):
                    continue
                fresh_weights = dict(other.modules[name].named_parameters(recurse=False))
                for part, weight in module.named_parameters(recurse=False):
                    mask = torch.rand(weight.shape, generator=generator(seed, "forget", f"{name}.{part}")) < chance
                    weight.copy_(torch.where(mask.to(weight.device), fresh_weights[part].to(weight.device), weight))
