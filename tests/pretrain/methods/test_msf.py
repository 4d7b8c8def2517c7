"""MSF: targets find themselves first, k = 1 is BYOL's loss, targets see weak views."""

import pytest
import torch
from torch import nn

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.core.augment import Recipe

BATCH, DIM = 8, 8


def make(spec: str) -> tuple:
    torch.manual_seed(0)
    objective = plugin.parse("objective", spec)
    return objective, objective.learner(nn.Sequential(nn.Flatten(), nn.Linear(12, DIM)), DIM, BATCH).eval()


def views(seed: int = 1) -> list[torch.Tensor]:
    return list(torch.rand(2, BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(seed)))


def test_one_neighbour_is_the_target_itself():
    objective, learner = make("msf:queue=32,k=1")
    strong, weak = views()
    guess = learner["predictor"](learner["online"](strong)).detach().double().numpy()
    goal = learner["target"](weak).double().numpy()
    assert float(objective.loss(learner, [strong, weak]).detach()) == pytest.approx(losses.byol(guess, goal), rel=1e-4)


def test_the_queue_holds_the_current_targets_and_then_the_oldest_leave():
    objective, learner = make("msf:queue=16,k=2")
    queue, seen = learner["queue"], []
    for seed in range(3):
        strong, weak = views(seed)
        objective.loss(learner, [strong, weak])
        targets = learner["target"](weak)
        seen.append(targets / targets.norm(dim=1, keepdim=True))
        objective.after_step(learner, 0.5)
    assert torch.allclose(queue.rows, torch.cat([seen[2], seen[1]]), atol=1e-5)


def test_the_target_sees_crop_and_flip_alone():
    base = Recipe(size=8, blur=0.5, solarize=0.2)
    strong, weak = make("msf:queue=32")[0].recipes(base)
    assert strong == base
    assert weak == Recipe(size=8, jitter=0, gray=0, blur=0, solarize=0)
    assert (weak.crop, weak.scale, weak.flip) == (base.crop, base.scale, base.flip)


def test_the_heads_take_the_papers_widths_from_the_embedding():
    learner = plugin.parse("objective", "msf:queue=32").learner(nn.Identity(), 512, BATCH)
    shapes = [tuple(layer.weight.shape) for layer in learner.modules() if isinstance(layer, nn.Linear)]
    assert shapes == [(1024, 512), (128, 1024), (1024, 128), (128, 1024), (1024, 512), (128, 1024)]
