"""DINO: the schedules, the centre and the frozen prototypes, which a checkpoint must hold."""

import pytest
import torch
from torch import nn

from sslbd_cli import plugin

BATCH, DIM = 8, 8
MICRO = "dino:hidden=8,out=4,prototypes=6"


def make(keys: str = "") -> tuple:
    torch.manual_seed(0)
    objective = plugin.parse("objective", MICRO + keys)
    return objective, objective.learner(nn.Sequential(nn.Flatten(), nn.Linear(12, DIM)), DIM, BATCH)


def views(seed: int = 1) -> list[torch.Tensor]:
    return list(torch.rand(2, BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(seed)))


def prototypes(learner) -> torch.Tensor:
    return learner["online"][2].weight


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.04), (0.25, 0.055), (0.5, 0.07), (1, 0.07)])
def test_the_teachers_temperature_rises_during_the_warm_up(progress, expected):
    objective, learner = make(",teacher_start=0.04,teacher=0.07,warmup=0.5")
    assert float(learner["centre"].temperature) == pytest.approx(0.04)
    objective.loss(learner, views())
    objective.after_step(learner, progress)
    assert float(learner["centre"].temperature) == pytest.approx(expected)


def test_without_warm_up_the_temperature_is_the_last_one_from_the_start():
    assert float(make(",teacher_start=0.04,teacher=0.07")[1]["centre"].temperature) == pytest.approx(0.07)


def test_prototypes_keep_their_directions_while_they_are_frozen():
    objective, learner = make(",frozen=0.5")
    optimiser = torch.optim.SGD(learner.parameters(), 1.0, 0.9, weight_decay=0.1)

    def step(progress: float) -> None:
        optimiser.zero_grad()
        objective.loss(learner, views()).backward()
        optimiser.step()
        objective.after_step(learner, progress)

    start = nn.functional.normalize(prototypes(learner).detach().clone(), dim=1)
    step(0.25)
    step(0.5)  # this step still belonged to the first half
    assert torch.allclose(nn.functional.normalize(prototypes(learner).detach(), dim=1), start, atol=1e-6)
    step(0.75)
    assert not torch.allclose(nn.functional.normalize(prototypes(learner).detach(), dim=1), start, atol=1e-3)


def test_the_centre_is_a_running_mean_of_the_teachers_outputs_on_both_views():
    objective, learner = make(",centre=0.75,norm=no")
    first, second = views()
    outputs = torch.cat([learner["target"](first), learner["target"](second)])
    objective.loss(learner, [first, second])
    assert not learner["centre"].mean.any()  # only after the step
    objective.after_step(learner, 0.5)
    assert torch.allclose(learner["centre"].mean, 0.25 * outputs.mean(0), atol=1e-6)


def test_outputs_are_cosines_whatever_the_prototypes_lengths():
    _, learner = make()
    outputs = learner["online"](views()[0])
    with torch.no_grad():
        prototypes(learner).mul_(3)
    assert outputs.abs().max() <= 1 + 1e-6
    assert torch.allclose(learner["online"](views()[0]), outputs, atol=1e-5)


def test_the_schedules_state_is_saved():
    names = make()[1].state_dict()
    assert {"centre.mean", "centre.temperature", "online.2.frozen"} <= set(names)
