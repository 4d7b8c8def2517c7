"""The laws of `pretrain --method`, for every file on the shelf."""

import contextlib
import dataclasses
import functools
import re

import numpy as np
import pytest
import torch

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import Arch, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Plan
from sslbd_cli.core.watch import Silent
from sslbd_cli.errors import InputError
from sslbd_cli.language import tokens
from sslbd_cli.pretrain import run as core
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.methods.mae import encode_visible
from sslbd_cli.pretrain.run import Pretraining

BATCH = 16
ARCH = {"mae": "vit:width=16,depth=1,heads=2,pool=mean"}  # for objectives that tiny is not enough for
READ = functools.partial(tokens.tokenise, tokeniser="clip", context=32)
CAPTIONS = captions.encode([f"picture {n} of a {('cat', 'dog', 'café')[n % 3]}" for n in range(60)])


@pytest.fixture(params=plugin.listing("objective"))
def objective(request, spec) -> Objective:
    return plugin.parse("objective", spec("objective", request.param, hidden=64, out=16, queue=64, prototypes=64))


def arch(objective) -> Arch:
    return plugin.parse("arch", ARCH.get(objective.name, "tiny:width=4"))


@pytest.fixture
def learner(objective) -> torch.nn.Module:
    encoder = new(arch(objective), 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))
    made = objective.learner(encoder, encoder.dim(), BATCH)
    made.given = [encoder]  # in a list, so that it is no further part of the module
    return made


def views(objective, seed: int = 0) -> list[torch.Tensor]:
    """As many views of a batch as the objective asks for, and captions behind them if it reads any."""
    base = torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    count = len(objective.recipes(Recipe(size=16)))
    noise = torch.rand(count, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(seed + 1))
    ids = [torch.from_numpy(READ(captions.decode(CAPTIONS[:BATCH])).ids)] if objective.captions else []
    return [(0.7 * base + 0.3 * n) for n in noise] + ids


@pytest.fixture
def dataset(dataset) -> kinds.Dataset:
    return dataclasses.replace(dataset, captions=CAPTIONS)


def pretrain(images, *words):
    return core.pretrain(images, *words, captions=CAPTIONS[: len(images)])


def test_the_loss_is_finite_and_reaches_every_weight_of_the_encoder(objective, learner):
    learner.train()
    loss = objective.loss(learner, views(objective))
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for name, weight in learner.given[0].named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), name


def test_only_weights_that_gradients_train_ask_for_them(objective, learner):
    learner.train()
    objective.loss(learner, views(objective)).backward()
    for name, weight in learner.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def simclr(objective, learner, first, second):
    z1, z2 = (numbers(learner["projector"](learner["encoder"](v))) for v in (first, second))
    return losses.nt_xent(z1, z2, objective.temperature)


def moco_v2(objective, learner, first, second):
    queries, keys = numbers(learner["online"](first)), numbers(learner["target"](second))
    return losses.info_nce(queries, keys, numbers(learner["queues"][0].rows), objective.temperature)


def byol(objective, learner, first, second):
    one, two = (numbers(learner["predictor"](learner["online"](v))) for v in (first, second))
    goal_one, goal_two = (numbers(learner["target"](v)) for v in (second, first))
    return losses.byol(one, goal_one) + losses.byol(two, goal_two)


def simsiam(objective, learner, first, second):
    one, two = (numbers(learner["projector"](learner["encoder"](v))) for v in (first, second))
    guesses = (numbers(learner["predictor"](learner["projector"](learner["encoder"](v)))) for v in (first, second))
    guess_one, guess_two = guesses
    return (losses.fidelity(guess_one, two) + losses.fidelity(guess_two, one)) / 2


def msf(objective, learner, first, second):
    queries, targets = numbers(learner["predictor"](learner["online"](first))), numbers(learner["target"](second))
    bank = numbers(learner["queue"].rows).copy()
    bank[BATCH : 2 * BATCH] = targets  # the step before filled the first rows
    return losses.mean_shift(queries, targets, bank, objective.k)


def barlow_twins(objective, learner, first, second):
    one, two = (numbers(learner["projector"](learner["encoder"](v))) for v in (first, second))
    return objective.scale * losses.barlow_twins(one, two, objective.offdiagonal)


def vicreg(objective, learner, first, second):
    one, two = (numbers(learner["projector"](learner["encoder"](v))) for v in (first, second))
    return losses.vicreg(one, two, objective.invariance, objective.variance, objective.covariance)


def dino(objective, learner, first, second):
    students, teachers = ([numbers(learner[part](v)) for v in (first, second)] for part in ("online", "target"))
    centre = numbers(learner["centre"].mean)
    sharpness = objective.temperature, objective.teacher
    return losses.dino(students, teachers, centre, *sharpness)


def clip(objective, learner, images, texts):
    seen, read = numbers(learner["projector"](learner["encoder"](images))), numbers(learner["text"](texts))
    return losses.clip(seen, read, float(learner["text"].logit_scale.detach().exp()))


def roclip(objective, learner, images, texts):
    seen, pool = numbers(learner["projector"](learner["encoder"](images))), numbers(learner["pool"].rows)
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    return losses.clip(seen, pool[(unit @ pool.T).argmax(1)], float(learner["text"].logit_scale.detach().exp()))


def rotnet(objective, learner, view):
    turns = [view]
    for _ in range(3):  # counter-clockwise, pixel by pixel: row i, column j comes from row j, column 15 - i
        turns.append(torch.stack([turns[-1][:, :, :, 15 - i] for i in range(16)], 2))
    guesses = [numbers(learner["head"](learner["encoder"](turned))) for turned in turns]
    return losses.cross_entropy(np.concatenate(guesses), [turn for turn in range(4) for _ in range(BATCH)])


def jigsaw(objective, learner, view):
    """Cells of 5 pixels that start at 0, 5 and 10 (16 // 3), tiles of 4."""
    wanted = torch.randint(objective.permutations, (BATCH,)).tolist()
    faded = (torch.rand(BATCH) < objective.projection).tolist()
    shifts = torch.randint(2, (BATCH, 9, 2)).tolist()
    orders, axis = learner["orders"].cells.tolist(), np.array([-1, 2, -1])
    feats = []
    for image, number, fade, shift in zip(numbers(view), wanted, faded, shifts, strict=True):
        x = (image - 0.5) / 0.25
        if fade:
            x = np.einsum("ij,jhw->ihw", np.eye(3) - np.outer(axis, axis) / 6, image - 0.5) / 0.25
        for cell, (down, right) in zip(orders[number], shift, strict=True):
            top, left = 5 * (cell // 3) + down, 5 * (cell % 3) + right
            tile = x[:, top : top + 4, left : left + 4]
            feats.append(numbers(learner["encoder"].encoder(torch.from_numpy(tile[None]).float()))[0])
    weight, bias = (numbers(w) for w in learner["head"].parameters())
    return losses.cross_entropy(np.stack(feats).reshape(BATCH, -1) @ weight.T + bias, wanted)


def mae(objective, learner, view):
    """16 patches of 4 x 4 pixels, of which a random 4 are seen."""
    visible = torch.rand(BATCH, 16).argsort(1)[:, :4]
    x = (view - 0.5) / 0.25
    painted = numbers(learner["decoder"](encode_visible(learner["encoder"].encoder, x, visible), visible))
    return losses.masked_patches(numbers(x), painted, visible.tolist(), 4)


REFERENCE = {
    "simclr": simclr,
    "moco-v2": moco_v2,
    "byol": byol,
    "simsiam": simsiam,
    "msf": msf,
    "barlow-twins": barlow_twins,
    "vicreg": vicreg,
    "dino": dino,
    "clip": clip,
    "rotnet": rotnet,
    "roclip": roclip,
    "jigsaw": jigsaw,
    "mae": mae,
}


def test_the_loss_is_the_papers_formula(objective, learner):
    earlier = views(objective, 7)  # a step first, so that targets and online parts differ
    objective.loss(learner.train(), earlier).backward()
    with torch.no_grad():
        for weight in learner.given[0].parameters():
            weight += 0.01 * torch.randn_like(weight)
    learner.eval()  # batch statistics would depend on how an objective groups its batch
    torch.manual_seed(0)  # masks and puzzles are drawn within the loss
    expected = REFERENCE[objective.name](objective, learner, *views(objective))
    torch.manual_seed(0)
    assert float(objective.loss(learner, views(objective)).detach()) == pytest.approx(expected, rel=1e-4)


# --- training -----------------------------------------------------------------------------------------------------


class Listener:
    """Record the loss of each epoch; interrupt after the epoch `until`, if there is one."""

    def __init__(self, until: int | None = None) -> None:
        self.losses: list[float] = []
        self.until = until

    @contextlib.contextmanager
    def __call__(self, total, unit, label):
        yield Silent() if label == "embedding" else self

    def advance(self, count: int = 1) -> None:
        if self.until is not None and len(self.losses) == self.until:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.losses.append(float(re.search(r"loss (\S+)", text)[1]))


def setup(objective, epochs: int) -> Pretraining:
    plan = Plan(epochs=epochs, batch=BATCH, lr=0.05, warmup=1)
    return Pretraining(objective=objective, arch=arch(objective), plan=plan, recipe=Recipe(size=16))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_steps_along_the_gradient_lower_the_loss(objective, learner):
    learner.train()
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 0.003)
    seen = []
    for _ in range(20):
        torch.manual_seed(0)  # the same masks and puzzles in every step
        loss = objective.loss(learner, views(objective))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0] - 0.1 * abs(seen[0])  # SimSiam's loss is below zero


def test_one_seed_is_one_encoder(objective, dataset, cpu):
    first, again, other = (
        pretrain(dataset.images, setup(objective, 2), Session(cpu, seed, Listener())) for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)


def test_a_resumed_training_ends_like_an_uninterrupted_one(objective, dataset, cpu, tmp_path):
    whole = pretrain(dataset.images, setup(objective, 4), Session(cpu, 0, Listener()))
    path = str(tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        pretrain(dataset.images, setup(objective, 4), Session(cpu, 0, Listener(until=2)), Checkpoint(path, "run"))
    torch.rand(5)  # what happens to the global generator in between does not matter
    listener = Listener()
    resumed = pretrain(
        dataset.images, setup(objective, 4), Session(cpu, 0, listener), Checkpoint(path, "run", resume=True)
    )
    assert len(listener.losses) == 2
    assert same(whole, resumed)


def test_labels_are_never_seen(objective, dataset, sslbd, tmp_path):
    shuffled = dataclasses.replace(dataset, labels=dataset.labels[::-1].copy())
    weights = []
    for number, made in enumerate((dataset, shuffled, dataclasses.replace(dataset, labels=None, classes=()))):
        kinds.write(made, str(tmp_path / "data.h5"))
        output = tmp_path / str(number)
        words = ["--method", objective, "--arch", arch(objective), "--epochs", 1, "--batch", BATCH, "--device", "cpu"]
        assert sslbd("pretrain", tmp_path / "data.h5", *words, "-q", "-o", output)[0] == 0
        weights.append(kinds.read(str(output), kinds.Encoder).sha256)
    assert len(set(weights)) == 1


def test_a_set_smaller_than_a_batch_is_refused(objective, dataset, cpu):
    with pytest.raises(InputError, match="15 images are fewer than one batch of 16"):
        pretrain(dataset.images[:15], setup(objective, 1), Session(cpu, 0, Listener()))
