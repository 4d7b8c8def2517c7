"""MoCo v2: queues keep the latest keys, both directions have their own, the key encoder follows slower and slower."""

import numpy as np
import pytest
import torch
from torch import nn

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.errors import InputError

BATCH, DIM = 8, 6


def make(spec: str, batch: int = BATCH) -> tuple:
    torch.manual_seed(0)
    objective = plugin.parse("objective", spec)
    return objective, objective.learner(nn.Sequential(nn.Flatten(), nn.Linear(12, DIM)), DIM, batch)


def views() -> list[torch.Tensor]:
    return list(torch.rand(2, BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(1)))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_both_directions_have_a_queue_of_their_own():
    objective, learner = make("moco-v2:queue=32,symmetric=yes")
    first, second = views()
    online, target, queues = learner["online"], learner["target"], learner["queues"]
    one = losses.info_nce(numbers(online(first)), numbers(target(second)), numbers(queues[0].rows), 0.2)
    two = losses.info_nce(numbers(online(second)), numbers(target(first)), numbers(queues[1].rows), 0.2)
    assert float(objective.loss(learner, views()).detach()) == pytest.approx((one + two) / 2, rel=1e-4)
    objective.after_step(learner, 0.5)
    for queue, view in zip(queues, (second, first), strict=True):
        assert not torch.allclose(queues[0].rows[:BATCH], queues[1].rows[:BATCH])
        keys = target(view)  # the target has not moved, as the online encoder has not
        assert torch.allclose(queue.rows[:BATCH], keys / keys.norm(dim=1, keepdim=True), atol=1e-5)


def test_one_direction_has_one_queue():
    assert len(make("moco-v2:queue=32")[1]["queues"]) == 1


@pytest.mark.parametrize(
    ("spec", "progress", "keep"),
    [
        ("moco-v2:queue=32,momentum=0.9", 1.0, 0.9),
        ("moco-v2:queue=32,momentum=0.9,momentum_end=1", 0.0, 0.9),
        ("moco-v2:queue=32,momentum=0.9,momentum_end=1", 0.5, 0.95),
        ("moco-v2:queue=32,momentum=0.9,momentum_end=1", 1.0, 1.0),
        ("byol:hidden=4,out=4,momentum=0.9", 0.5, 0.95),
        ("byol:hidden=4,out=4,momentum=0.9,momentum_end=0.9", 0.7, 0.9),
    ],
)
def test_the_target_keeps_more_of_itself_as_training_goes_on(spec, progress, keep):
    objective, learner = make(spec)
    objective.loss(learner, views())
    before = [weight.clone() for weight in learner["target"].parameters()]
    with torch.no_grad():
        for weight in learner["online"].parameters():
            weight += 1
    objective.after_step(learner, progress)
    for old, new in zip(before, learner["target"].parameters(), strict=True):
        assert torch.allclose(new, old + (1 - keep), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "moco-v2:queue=36",
            "moco-v2: queue=36 is not a multiple of the batch of 8; give queue=40, or another --batch",
        ),
        ("moco-v2:queue=32,groups=3", "moco-v2: groups=3 does not divide the batch of 8; give a divisor of it"),
        ("msf:queue=36", "msf: queue=36 is not a multiple of the batch of 8"),
        ("msf:queue=32,groups=3", "msf: groups=3 does not divide the batch of 8"),
        ("msf:queue=32,k=33", "msf: k=33 neighbours are more than the queue of 32; lower k"),
    ],
)
def test_a_queue_that_does_not_fit_the_batch_is_refused(spec, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make(spec)
