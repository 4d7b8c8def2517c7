"""The laws of `pretrain --method`, for every file on the shelf."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest
import torch

from reference import losses
from sslbd_cli.core import artefact, plugin
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.bases import Objective
from sslbd_cli.core.device import generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.nets import Tiny, new
from sslbd_cli.core.pretrain import Pretraining, pretrain
from sslbd_cli.core.train import Checkpoint, Plan

BATCH = 16


@pytest.fixture(params=plugin.listing("objective"))
def objective(request, spec) -> Objective:
    return plugin.parse("objective", spec("objective", request.param, hidden=64, queue=64))


@pytest.fixture
def learner(objective) -> torch.nn.Module:
    encoder = new(Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))
    made = objective.learner(encoder, encoder.dim(), BATCH)
    made.given = [encoder]  # in a list, so that it is no further part of the module
    return made


def views(seed: int = 0) -> list[torch.Tensor]:
    base = torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    noise = torch.rand(2, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(seed + 1))
    return [(0.7 * base + 0.3 * n) for n in noise]


def test_the_loss_is_finite_and_reaches_every_weight_of_the_encoder(objective, learner):
    learner.train()
    loss = objective.loss(learner, views())
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for name, weight in learner.given[0].named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), name


def test_only_weights_that_gradients_train_ask_for_them(objective, learner):
    learner.train()
    objective.loss(learner, views()).backward()
    for name, weight in learner.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def simclr(objective, learner, first, second):
    z1, z2 = (numbers(learner["projector"](learner["encoder"](v))) for v in (first, second))
    return losses.nt_xent(z1, z2, objective.temperature)


def moco_v2(objective, learner, first, second):
    queries, keys = numbers(learner.online(first)), numbers(learner.target(second))
    return losses.info_nce(queries, keys, numbers(learner.queue), objective.temperature)


def byol(objective, learner, first, second):
    one, two = (numbers(learner["predictor"](learner["online"](v))) for v in (first, second))
    goal_one, goal_two = (numbers(learner["target"](v)) for v in (second, first))
    return losses.byol(one, goal_one) + losses.byol(two, goal_two)


REFERENCE = {"simclr": simclr, "moco-v2": moco_v2, "byol": byol}


def test_the_loss_is_the_papers_formula(objective, learner):
    objective.loss(learner.train(), views(7)).backward()  # a step first, so that targets and online parts differ
    with torch.no_grad():
        for weight in learner.given[0].parameters():
            weight += 0.01 * torch.randn_like(weight)
    learner.eval()  # batch statistics would depend on how an objective groups its batch
    expected = REFERENCE[objective.name](objective, learner, *views())
    assert float(objective.loss(learner, views()).detach()) == pytest.approx(expected, rel=1e-4)


# --- training -----------------------------------------------------------------------------------------------------


class Listener:
    """Record the loss of each epoch; interrupt after the epoch `until`, if there is one."""

    def __init__(self, until: int | None = None) -> None:
        self.losses: list[float] = []
        self.until = until

    @contextlib.contextmanager
    def __call__(self, total, unit, label):
        yield self

    def advance(self, count: int = 1) -> None:
        if self.until is not None and len(self.losses) == self.until:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.losses.append(float(re.search(r"loss (\S+)", text)[1]))


def setup(objective, epochs: int) -> Pretraining:
    plan = Plan(epochs=epochs, batch=BATCH, lr=0.05, warmup=1)
    return Pretraining(objective=objective, arch=Tiny(width=4), plan=plan, recipe=Recipe(size=16))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_steps_along_the_gradient_lower_the_loss(objective, learner):
    learner.train()
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 0.003)
    seen = []
    for _ in range(20):
        loss = objective.loss(learner, views())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.9 * seen[0]


def test_one_seed_is_one_encoder(objective, dataset, cpu):
    first, again, other = (pretrain(dataset.images, setup(objective, 2), cpu, seed, Listener()) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


def test_a_resumed_training_ends_like_an_uninterrupted_one(objective, dataset, cpu, tmp_path):
    whole = pretrain(dataset.images, setup(objective, 4), cpu, 0, Listener())
    path = str(tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        pretrain(dataset.images, setup(objective, 4), cpu, 0, Listener(until=2), Checkpoint(path, "run"))
    torch.rand(5)  # what happens to the global generator in between does not matter
    listener = Listener()
    resumed = pretrain(dataset.images, setup(objective, 4), cpu, 0, listener, Checkpoint(path, "run", resume=True))
    assert len(listener.losses) == 2
    assert same(whole, resumed)


def test_labels_are_never_seen(objective, dataset, sslbd, tmp_path):
    shuffled = dataclasses.replace(dataset, labels=dataset.labels[::-1].copy())
    weights = []
    for number, made in enumerate((dataset, shuffled, dataclasses.replace(dataset, labels=None, classes=()))):
        artefact.write(made, str(tmp_path / "data.h5"))
        output = tmp_path / str(number)
        words = ["--method", objective, "--arch", "tiny:width=4", "--epochs", 1, "--batch", BATCH, "--device", "cpu"]
        assert sslbd("pretrain", tmp_path / "data.h5", *words, "-q", "-o", output)[0] == 0
        weights.append(artefact.read(str(output), artefact.Encoder).sha256)
    assert len(set(weights)) == 1


def test_a_set_smaller_than_a_batch_is_refused(objective, dataset, cpu):
    with pytest.raises(InputError, match="15 images are fewer than one batch of 16"):
        pretrain(dataset.images[:15], setup(objective, 1), cpu, 0, Listener())
