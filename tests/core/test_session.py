"""What travels with a run: progress, time and memory."""

import contextlib

import pytest
import torch

from micro import make_dataset
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.session import Session, TimeBudget
from sslbd_cli.errors import OutOfTime, Unsound


class Told:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.labels, self.count, self.notes = [], 0, []

    @contextlib.contextmanager
    def __call__(self, total, unit, label):
        self.labels.append((total, unit, label))
        yield self

    def advance(self, count=1):
        self.count += count

    def note(self, text):
        self.notes.append(text)


def test_work_is_shown_as_it_goes(cpu):
    told = Told()
    with Session(cpu, watch=told).work(10, "images", "test") as ticker:
        ticker.advance(3)
        ticker.note("half")
    assert (told.labels, told.count, told.notes) == ([(10, "images", "test")], 3, ["half"])


def test_work_stops_at_the_first_look_after_the_budget_is_spent(cpu):
    told, budget = Told(), TimeBudget(100)
    session = Session(cpu, watch=told, budget=budget)
    with pytest.raises(OutOfTime, match="the budget of 100 s was spent"), session.work(10, "steps", "test") as ticker:
        ticker.advance()
        budget.started -= 101
        ticker.advance()
        pytest.fail("nothing stopped it")
    assert told.count == 2 and issubclass(OutOfTime, Unsound)
    with pytest.raises(OutOfTime), session.work(1, "steps", "more"):
        pytest.fail("work began after the budget was spent")


def test_without_a_number_time_is_endless(cpu):
    budget = TimeBudget()
    budget.started -= 1e9
    assert not budget.is_spent()
    with Session(cpu, budget=budget).work(1, "steps", "test") as ticker:
        ticker.advance()


def test_a_session_draws_as_its_seed_and_purpose_say(cpu):
    session = Session(cpu, 3)
    drawn = torch.rand(4, generator=session.generator("a", 1))
    assert torch.equal(drawn, torch.rand(4, generator=generator(3, "a", 1)))
    assert not torch.equal(drawn, torch.rand(4, generator=session.with_seed(4).generator("a", 1)))


def test_exact_work_is_fp32_and_shares_everything_else():
    session = Session(Device(torch.device("cpu"), "bf16"), 5)
    exact = session.exact()
    assert exact.device.precision == "fp32" and exact.seed == 5 and exact.embeddings is session.embeddings


@pytest.mark.parametrize(("name", "spare", "resident"), [("meta", 0, True), ("meta", -1, False), ("cpu", 0, False)])
def test_images_are_copied_to_another_device_if_they_fit_into_the_memory(name, spare, resident):
    images = make_dataset().images
    pool = Session(Device(torch.device(name), "fp32"), memory=images.nbytes + spare).pool(images)
    assert (pool.resident is not None) == resident and (name == "cpu" or pool.batch(torch.tensor([3, 1])).is_meta)
    if name == "cpu":
        assert torch.equal(pool.batch(torch.tensor([3, 1])), torch.from_numpy(images[[3, 1]]))
