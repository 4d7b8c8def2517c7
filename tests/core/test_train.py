"""The training loop: its schedule, its optimisers, and checkpoints that lead to the same bytes."""

import contextlib
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from micro import make_dataset, make_encoder
from sslbd_cli.artefacts import checkpoint as checkpoints
from sslbd_cli.artefacts import container, kinds
from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.artefacts.checkpoint import Saved
from sslbd_cli.core.session import Session, TimeBudget
from sslbd_cli.core.train import Checkpoint, Fit, Plan, ema, freeze, optimiser
from sslbd_cli.core.watch import unwatched
from sslbd_cli.errors import InputError, Unsound

ROWS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


def plan(**changes) -> Plan:
    return Plan(**({"epochs": 4, "batch": 10, "lr": 0.05, "weight_decay": 1e-3} | changes))


# --- the schedule -------------------------------------------------------------------------------------------------


def test_the_rate_rises_then_falls_along_a_cosine():
    rates = [plan(epochs=10, lr=1.0, warmup=2).rate(step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 40) for n in range(40)])
    assert rates[30] == pytest.approx(0.5) and 0 < rates[-1] < 0.002


def test_a_constant_rate_after_warm_up():
    rates = [plan(epochs=4, lr=0.3, warmup=0.5, schedule="constant").rate(step, 4) for step in range(16)]
    assert rates == pytest.approx([0.15] + [0.3] * 15)


def test_warm_up_that_never_ends_and_no_warm_up():
    assert plan(epochs=1, lr=1.0, warmup=10).rate(4, 5) == pytest.approx(0.1)
    assert plan(epochs=1, lr=1.0).rate(0, 5) == 1


# --- optimisers ---------------------------------------------------------------------------------------------------


def updates(weight_decay: float) -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """Take one LARS step with a rate of 0.5; return the module, the gradients and the changes."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    lars = optimiser(module, plan(lr=0.5, optimiser="lars", weight_decay=weight_decay))
    before = [p.detach().clone() for p in module.parameters()]
    module(ROWS[:, :4]).pow(2).mul(torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    grads = [p.grad.clone() for p in module.parameters()]
    lars.step()
    after = list(module.parameters())
    return before, grads, [new.detach() - old for new, old in zip(after, before, strict=True)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_takes_steps_in_proportion_to_the_weights_but_leaves_vectors_alone(weight_decay):
    before, grads, changes = updates(weight_decay)
    decayed = grads[0] + weight_decay * before[0]
    trust = 0.02 * before[0].norm() / (grads[0].norm() + weight_decay * before[0].norm())
    assert torch.allclose(changes[0], -0.5 * min(trust / 0.5, torch.tensor(1.0)) * decayed, atol=1e-6)
    assert changes[0].norm() <= 0.021 * before[0].norm()
    for grad, change in zip(grads[1:], changes[1:], strict=True):  # bias, and weight and bias of the normalisation
        assert torch.allclose(change, -0.5 * grad, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_frozen_weights_are_not_optimised(name):
    module = nn.Sequential(nn.Linear(4, 3), freeze(nn.Linear(3, 2)))
    groups = optimiser(module, plan(optimiser=name)).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_ema_moves_parameters_towards_the_online_ones_and_keeps_buffers():
    target, online = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        online.weight.fill_(3.0)
        online.running_mean.fill_(5.0)
    ema(target, online, 0.9)
    assert torch.allclose(target.weight, torch.full((2,), 1.2)) and target.running_mean.tolist() == [0, 0]


# --- the loop -----------------------------------------------------------------------------------------------------


class Interrupt:
    """A watch that records what it is told, and raises when the epoch `after` is over and the next has begun."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.total, self.done, self.notes = after, 0, 0, []

    @contextlib.contextmanager
    def __call__(self, total, unit, label):
        self.total = total
        yield self

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.after is not None and len(self.notes) == self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def fit(cpu, seen: list | None = None, **changes) -> Fit:
    """Train an autoencoder with dropout and batch normalisation on ROWS, with noise from the loop's generator."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 6))

    def loss(rows: torch.Tensor, gen: torch.Generator) -> dict[str, torch.Tensor]:
        if seen is not None:
            seen.append(rows.tolist())
        batch = ROWS[rows]
        value = (module(batch + 0.1 * torch.randn(batch.shape, generator=gen)) - batch).square().mean()
        return {"loss": value, "half": value / 2}

    return Fit(module, loss, len(ROWS), plan(**changes), Session(cpu))


def train(made: Fit, watch=unwatched) -> dict[str, float]:
    made.session = replace(made.session, watch=watch)
    return made.run("test")


def weights(made: Fit) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_training_with_a_share_of_the_time_ends_its_schedule_in_time(cpu, monkeypatch):
    now, rates = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    made = fit(cpu, epochs=10)  # 50 steps of a second each
    made.share, made.session = 0.5, replace(made.session, budget=TimeBudget(40))

    def tick(progress: float) -> None:
        now[0] += 1
        rates.append(made.optimiser.param_groups[0]["lr"])

    made.after_step = tick
    terms = made.run("test")
    assert len(rates) == 20 and terms["loss"] > 0
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02 * rates[0]
    now[0], rates[:] = 0.0, []
    whole = fit(cpu, epochs=10)
    whole.share, whole.session = 0.5, replace(whole.session, budget=TimeBudget(1000))
    whole.after_step = tick
    whole.run("test")
    assert len(rates) == 50
    plain = fit(cpu, epochs=10)
    plain.run("test")
    assert same(weights(whole), weights(plain))


def test_each_epoch_shuffles_all_rows_anew(cpu):
    seen: list[list[int]] = []
    train(fit(cpu, seen, epochs=2))
    first, second = ([row for rows in seen[at : at + 5] for row in rows] for at in (0, 5))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second


def test_terms_are_the_means_of_the_last_epoch_and_fall(cpu):
    first, last = (train(fit(cpu, epochs=n)) for n in (1, 30))
    assert last["loss"] == pytest.approx(2 * last["half"]) and last["loss"] < 0.8 * first["loss"]


def test_progress_adds_up(cpu):
    watch = Interrupt()
    train(fit(cpu, batch=15), watch)
    assert watch.total == watch.done == 4 * 45 and len(watch.notes) == 4
    assert watch.notes[0].startswith("epoch 1/4 loss ")


def test_fewer_rows_than_a_batch_are_refused(cpu):
    with pytest.raises(InputError, match="50 images are fewer than one batch of 51; give --batch 50 or less"):
        fit(cpu, batch=51)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_and_resumed_is_bit_for_bit_the_same(cpu, tmp_path, name, after):
    whole = fit(cpu, optimiser=name)
    terms = train(whole)
    broken = fit(cpu, optimiser=name)
    broken.checkpoint = Checkpoint(str(tmp_path / "c"), "run")
    with pytest.raises(KeyboardInterrupt):
        train(broken, Interrupt(after))
    resumed, watch = fit(cpu, optimiser=name), Interrupt()
    resumed.checkpoint = Checkpoint(str(tmp_path / "c"), "run", resume=True)
    torch.rand(3)  # the global generator's state is no part of the run
    assert train(resumed, watch) == terms
    assert watch.total == watch.done == (4 - after) * 50
    assert same(weights(whole), weights(resumed))


def test_resuming_a_finished_run_trains_no_more(cpu, tmp_path):
    whole, again = fit(cpu), fit(cpu)
    whole.checkpoint = Checkpoint(str(tmp_path / "c"), "run")
    again.checkpoint = Checkpoint(str(tmp_path / "c"), "run", resume=True)
    terms = train(whole)
    watch = Interrupt()
    assert train(again, watch) == terms and watch.done == 0
    assert same(weights(whole), weights(again))


def test_a_checkpoint_is_neither_needed_nor_read_without_resume(cpu, tmp_path):
    fresh = fit(cpu)
    fresh.checkpoint = Checkpoint(str(tmp_path / "missing"), "run", resume=True)
    train(fresh)
    again = fit(cpu)
    again.checkpoint = Checkpoint(str(tmp_path / "missing"), "run")
    watch = Interrupt()
    train(again, watch)
    assert watch.done == 200 and same(weights(fresh), weights(again))


def test_two_runs_write_the_same_checkpoint(cpu, tmp_path):
    for name in "ab":
        made = fit(cpu)
        made.checkpoint = Checkpoint(str(tmp_path / name), "run")
        train(made)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_checkpoint_of_another_run_is_refused(cpu, tmp_path):
    made = fit(cpu)
    made.checkpoint = Checkpoint(str(tmp_path / "c"), "run")
    train(made)
    other = fit(cpu)
    other.checkpoint = Checkpoint(str(tmp_path / "c"), "another", resume=True)
    with pytest.raises(InputError, match="c: the checkpoint of another run"):
        train(other)


def test_what_is_no_checkpoint_is_refused(cpu, tmp_path):
    kinds.write(make_dataset(), str(tmp_path / "dataset"))
    kinds.write(make_encoder(), str(tmp_path / "encoder"))
    container.write_safetensors(str(tmp_path / "strange"), "[1", {})
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes((tmp_path / "encoder").read_bytes()[:-9])
    for path in sorted(tmp_path.iterdir()):
        made = fit(cpu)
        before = weights(made)
        made.checkpoint = Checkpoint(str(path), "run", resume=True)
        with pytest.raises(InputError, match=path.name):
            train(made)
        assert same(weights(made), before)


def stored(cpu, path: Path, **plan) -> Saved:
    """Train two of four epochs and return the checkpoint."""
    made = fit(cpu, **plan)
    made.checkpoint = Checkpoint(str(path), "run")
    with pytest.raises(KeyboardInterrupt):
        train(made, Interrupt(2))
    return checkpoints.read(str(path))


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(cpu, tmp_path):
    whole = stored(cpu, tmp_path / "c")
    data, rng, path = (tmp_path / "c").read_bytes(), random.Random(0), tmp_path / "flipped"
    for at in [*range(8), *(rng.randrange(len(data)) for _ in range(50))]:
        bit = 1 << rng.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        try:
            read = checkpoints.read(str(path))
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:  # white space in the header of safetensors means nothing
            assert read.meta() == whole.meta(), at
            assert container.digest({}, read.arrays) == container.digest({}, whole.arrays), at


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_checkpoint_whose_tensors_or_epoch_do_not_fit_changes_nothing(cpu, tmp_path, optimiser):
    whole, path = stored(cpu, tmp_path / "c", optimiser=optimiser), tmp_path / "odd"
    arrays = whole.arrays
    odd = [replace(whole, epoch=5)]
    for name, array in [row for at, row in enumerate(arrays.items()) if at % 3 == 0]:
        odd += [
            replace(whole, arrays=arrays | {name: np.zeros((*array.shape, 2), array.dtype)}),
            replace(whole, arrays=arrays | {name: array.astype(np.float64)}),
            replace(whole, arrays=arrays | {f"{name}.more": array}),
        ]
        if not name.startswith("optimiser.") or optimiser == "adam":  # SGD may have made no step with a parameter
            odd.append(replace(whole, arrays={k: v for k, v in arrays.items() if k != name}))
    for saved in odd:
        made = fit(cpu, optimiser=optimiser)
        before = weights(made)
        checkpoints.write(saved, str(path))
        made.checkpoint = Checkpoint(str(path), "run", resume=True)
        with pytest.raises(InputError, match="odd: its epoch or tensors do not fit the training"):
            train(made)
        assert same(weights(made), before)


def test_a_checkpoint_with_an_odd_header_is_refused(cpu, tmp_path):
    whole, path = stored(cpu, tmp_path / "c"), str(tmp_path / "odd")
    good = whole.meta()
    for odd in ({"epoch": 0}, {"epoch": -1}, {"epoch": "1"}, {"epoch": True}, {"epoch": 1 << 40}, {"terms": []},
                {"terms": {"loss": "x"}}, {"terms": {"loss": None}}, {"checkpoint": 3}, {"more": 1}):  # fmt: skip
        meta = good | odd
        text = canonical(meta | {"sha256": container.digest(meta, whole.arrays)})
        container.write_safetensors(path, text, whole.arrays)
        with pytest.raises(InputError, match=r"odd: its? "):
            checkpoints.read(path)
    container.write_safetensors(path, canonical(good), whole.arrays)
    with pytest.raises(InputError, match="odd: its header records no digest"):
        checkpoints.read(path)


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_epoch(cpu, tmp_path):
    good = fit(cpu)
    good.checkpoint = Checkpoint(str(tmp_path / "good"), "run")
    with pytest.raises(KeyboardInterrupt):
        train(good, Interrupt(2))

    made, turns = fit(cpu), []
    learn = made.loss

    def loss(rows: torch.Tensor, gen: torch.Generator) -> dict[str, torch.Tensor]:
        turns.append(1)
        terms = learn(rows, gen)
        return {name: term * np.inf for name, term in terms.items()} if len(turns) > 11 else terms

    made.loss = loss
    made.checkpoint = Checkpoint(str(tmp_path / "c"), "run")
    with pytest.raises(
        Unsound,
        match=r"F01 .* in epoch 3 \(loss, half\); lower the learning rate; the checkpoint holds the epoch before",
    ):
        train(made)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "good").read_bytes()


def test_a_single_image_is_refused_without_advice_that_is_refused(cpu):
    made = fit(cpu)
    with pytest.raises(InputError, match="a single image is too few to train on; give at least 2"):
        Fit(made.module, made.loss, 1, made.plan, made.session)


def test_divergence_in_the_first_epoch_is_told_before_any_remark_and_promises_no_checkpoint(cpu, tmp_path):
    made = fit(cpu)
    learn = made.loss
    made.loss = lambda rows, gen: {name: term * np.nan for name, term in learn(rows, gen).items()}
    made.remark = lambda epoch: pytest.fail("remarked on a diverged epoch")
    made.checkpoint = Checkpoint(str(tmp_path / "c"), "run")
    with pytest.raises(Unsound, match=r"^F01 .* in epoch 1 \(loss, half\); lower the learning rate$"):
        train(made)
    assert not (tmp_path / "c").exists()
