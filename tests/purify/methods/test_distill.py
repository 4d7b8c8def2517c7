"""CompRess distillation: the loss is the paper's, the queues are fair, and the student learns from the teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.methods.distill import _Learner, similarity_loss


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_loss_is_the_papers_formula():
    taught, learned, bank, own = unit(4, 6), unit(4, 6, seed=1), unit(9, 6, seed=2), unit(9, 6, seed=3)
    arrays = [tensor.double().numpy() for tensor in (taught, learned, bank, own)]
    assert float(similarity_loss(taught, learned, bank, own, 0.1)) == pytest.approx(
        losses.similarity(*arrays, 0.1), rel=1e-4
    )


def test_a_student_equal_to_its_teacher_has_no_loss():
    taught, bank = unit(4, 6), unit(9, 6, seed=2)
    assert float(similarity_loss(taught, taught, bank, bank, 0.04)) == pytest.approx(0, abs=1e-6)


def test_the_queues_take_turns_and_stay_in_step(encoder):
    student = nets.load(encoder)
    learner = _Learner(student, 32, 6)
    for turn in range(4):
        learner.teacher_queue.latest, learner.slow_queue.latest = (
            torch.full((4, 32), float(turn)),
            torch.full((4, 32), 10.0 + turn),
        )
        learner.follow(0.5)
    assert learner.teacher_queue.rows[:, 0].tolist() == [3, 3, 3, 3, 2, 2]
    assert learner.slow_queue.rows[:, 0].tolist() == [13, 13, 13, 13, 12, 12]


def test_the_momentum_student_follows(encoder):
    learner = _Learner(nets.load(encoder), 32, 6)
    learner.teacher_queue.latest, learner.slow_queue.latest = unit(4, 32), unit(4, 32)
    before = [p.clone() for p in learner.slow.parameters()]
    with torch.no_grad():
        for weight in learner.student.parameters():
            weight += 1
    learner.follow(0.75)
    for old, new in zip(before, learner.slow.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25, atol=1e-6)


def test_the_student_comes_to_order_images_like_its_teacher(encoder, dataset, cpu):
    net = nets.load(encoder)
    taught = F.normalize(embed(net, dataset.images, Session(cpu)), dim=1)

    def agreement(epochs: int) -> float:
        purifier = plugin.parse("purifier", f"distill:epochs={epochs},batch=20,optimiser=adamw,momentum=0.9,scale=0.8")
        learned = F.normalize(
            embed(purifier.clean(net, Supplies(dataset.images), Session(cpu)), dataset.images, Session(cpu)), dim=1
        )
        upper = np.triu_indices(len(taught), 1)
        return float(np.corrcoef((taught @ taught.T).numpy()[upper], (learned @ learned.T).numpy()[upper])[0, 1])

    assert agreement(15) > agreement(1)
