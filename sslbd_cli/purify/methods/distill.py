"""CompRess (Koohpayegani et al. 2020), SSL-Backdoor's defence: a fresh student learns the teacher's similarities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import ImageEncoder, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Terms, ema, freeze
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import Queue
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import training, trial
from sslbd_cli.purify.training_keys import TrainingKeys


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingKeys, EncoderPurifier):
    """Distil into a fresh student by similarities to a momentum queue on clean images (CompRess; SSL-Backdoor, 5).

    Both networks see one augmented image: p = softmax(Q_T t / tau), q = softmax(Q_S s / tau), where the queues hold
    earlier embeddings of the same images by the teacher and by the momentum student; loss = KL(p || q). The student
    inherits no weight, and clean images never show it the trigger. Similarities are taken before the batch is enqueued.
    """

    epochs: int = key(130)
    lr: float = key(0.01)
    schedule: str = key("cosine", "schedule of the learning rate; step: x0.2 after 9/13 and 12/13 (CompRess)",
                        choices=("cosine", "constant", "step"), expert=True)  # fmt: skip
    optimiser: str = key("sgd", "optimiser (paper: sgd)", choices=("sgd", "adamw"), expert=True)
    queue: int = key(128000, "length of the queues; at most four epochs of images are used", low=2)
    temperature: float = key(0.04, "temperature of both softmaxes", low=0.001)
    momentum: float = key(0.999, "EMA momentum of the momentum student", low=0, high=1)
    weight_decay: float = key(0.0001, "weight decay", low=0, expert=True)
    scale: float = key(0.2, "smallest share of the image in a crop", low=0.01, high=1, expert=True)

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        teacher = freeze(encoder.twin().to(session.device.torch).eval())
        mean, std = (tuple(b.flatten().tolist()) for b in (encoder.mean, encoder.std))
        student = new(encoder.arch, encoder.size, mean, std, session.generator("student")).to(session.device.torch)
        pool = session.pool(supplies.images)
        batch = min(self.batch, len(pool))
        length = max(batch, min(self.queue, 4 * len(pool)) // batch * batch)
        learner = _Learner(student, encoder.dim(), length).to(session.device.torch)
        rows_at_once = step_rows(student, trial(student), session)
        # crop and flip only, as in CompRess
        recipe = Recipe(size=encoder.size, scale=(self.scale, 1.0), jitter=0.0, gray=0.0)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            view = augment(pool.batch(rows), recipe, gen)
            with torch.no_grad():
                teacher_feats = F.normalize(in_portions(teacher, view, rows_at_once), dim=1)
                slow_feats = F.normalize(in_portions(learner.slow, view, rows_at_once), dim=1)
            student_feats = F.normalize(in_portions(student, view, rows_at_once), dim=1)
            bank, own = learner.teacher_queue, learner.slow_queue
            value = similarity_loss(teacher_feats, student_feats, bank.rows, own.rows, self.temperature)
            bank.latest, own.latest = teacher_feats, slow_feats
            return {"loss": value}

        milestones = (self.epochs * 9 / 13, self.epochs * 12 / 13)  # 90 and 120 of CompRess's 130
        plan = self.plan(len(pool), weight_decay=self.weight_decay, milestones=milestones, factor=0.2)
        fit = training(learner, loss, supplies, plan, session)
        fit.after_step = lambda progress: learner.follow(self.momentum)
        fit.run(self.name)
        return student.eval()


def similarity_loss(
    teacher_feats: Tensor, student_feats: Tensor, bank: Tensor, own: Tensor, temperature: float
) -> Tensor:
    """Return the batch mean of KL(p || q) for unit embeddings B,D and the queues K,D of teacher and student."""
    with torch.autocast(teacher_feats.device.type, enabled=False):
        p = F.log_softmax(teacher_feats @ bank.T / temperature, dim=1)
        q = F.log_softmax(student_feats @ own.T / temperature, dim=1)
        return F.kl_div(q, p, reduction="batchmean", log_target=True)


class _Learner(nn.Module):
    """The student, its momentum copy, and one queue each for the teacher's and the momentum student's embeddings."""

    def __init__(self, student: ImageEncoder, dim: int, length: int) -> None:
        super().__init__()
        self.student, self.slow = student, freeze(student.twin())
        gen = generator(0, "queues", length)
        self.teacher_queue, self.slow_queue = Queue(length, dim, gen), Queue(length, dim, gen)

    def follow(self, momentum: float) -> None:
        """Update the momentum student and push the latest batch to both queues, so that their rows stay paired."""
        ema(self.slow, self.student, momentum)
        self.teacher_queue.push()
        self.slow_queue.push()
