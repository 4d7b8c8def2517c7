"""MIMIC (Han et al., TIFS 2025): a fresh student learns the attention maps and embeddings of the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.nets import ImageEncoder, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.stages import maps_of, reading, stages
from sslbd_cli.core.train import Terms
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import nt_xent
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import attention, original_of, projector, training, trial
from sslbd_cli.purify.training_keys import TrainingKeys

MIMICKED = 4  # number of last stages to mimic: a ResNet's layers


@dataclass(frozen=True, kw_only=True)
class Mimic(TrainingKeys, EncoderPurifier):
    """Clone attention maps and embeddings into a fresh student that also contrasts views (MIMIC, TIFS 2025).

    loss = NT-Xent of two views + attention * sum over the last four stages of the mean squared difference of their
    attention maps + clone * negative cosine of the embeddings. The student inherits no weight. The authors weight each
    stage by an estimate of mutual information; their code computes it on the untrained student, but the paper means the
    original. Here all stages have the same weight, the mean of theirs. Both views pass the student at once; the authors
    forward three times and update the batch statistics three times.
    """

    epochs: int = key(1000)
    batch: int = key(128)
    lr: float = key(0.01)
    schedule: str = key("constant")
    optimiser: str = key("adam", "optimiser (paper: adam)", choices=("adam", "adamw", "sgd"), expert=True)
    weight_decay: float = key(0.000001, "weight decay", low=0, expert=True)
    attention: float = key(3500.0, "weight of each stage's maps: 1000 and a quarter of 10000", low=0)
    clone: float = key(1.0, "weight of the embeddings", low=0)
    temperature: float = key(0.5, "temperature of NT-Xent", low=0.001)

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        original = original_of(encoder, session.device)
        mean, std = (tuple(b.flatten().tolist()) for b in (encoder.mean, encoder.std))
        student = new(encoder.arch, encoder.size, mean, std, session.generator("student")).to(session.device.torch)
        module = nn.ModuleList([student, projector(encoder.dim(), 128, session)])
        pool, recipe = session.pool(supplies.images), Recipe(size=encoder.size)
        taught_by, learned_by = _Attentive(original), _Attentive(student)
        rows_at_once = step_rows(learned_by, trial(student), session)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            first, second = augment(batch, recipe, gen), augment(batch, recipe, gen)
            with torch.no_grad():
                teacher_feats, *theirs = taught_by.parts(in_portions(taught_by, first, rows_at_once))
            both = in_portions(learned_by, torch.cat([first, second]), rows_at_once)
            student_feats, *ours = learned_by.parts(both)
            pairs = zip(theirs, ours, strict=True)
            terms = {
                "contrast": nt_xent(module[1](student_feats).float(), self.temperature),
                "attention": torch.stack([F.mse_loss(b[: len(batch)], a) for a, b in pairs]).sum(),
                "clone": -F.cosine_similarity(student_feats[: len(batch)], teacher_feats, dim=1).mean(),
            }
            total = terms["contrast"] + self.attention * terms["attention"] + self.clone * terms["clone"]
            return {"loss": total, **terms}

        plan = self.plan(len(pool), weight_decay=self.weight_decay)
        training(module, loss, supplies, plan, session).run(self.name)
        return student.eval()


class _Attentive(nn.Module):
    """An encoder that also puts out the attention maps of its last stages: B,D+H*W+..., the embedding first."""

    def __init__(self, net: ImageEncoder) -> None:
        super().__init__()
        self.net = net
        self.outputs = [stage.output for stage in stages(net)[-MIMICKED:]]

    def forward(self, images: Tensor) -> Tensor:
        with reading(self.outputs) as outputs:
            feats = self.net(images)
        rows = [feats, *(attention(maps) for maps in maps_of(self.net, outputs))]
        self.widths = [row.shape[1] for row in rows]
        return torch.cat(rows, dim=1)

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split the output into embeddings B,D and attention maps B,H*W."""
        return torch.split(rows, self.widths, dim=1)
