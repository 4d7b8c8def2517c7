"""Gradients of triggers in chunks: the same numbers, whatever fits into memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslbd_cli.core import nets
from sslbd_cli.core.device import Device
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.session import Session, TimeBudget
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.detect.gradients import Room
from sslbd_cli.detect.inversion import inversion
from sslbd_cli.detect.inversion.inversion import Course, Weight, invert
from sslbd_cli.detect.inversion.patches import Patches
from sslbd_cli.detect.inversion.problem import InversionProblem
from sslbd_cli.errors import OutOfTime
from wired import make_gated, make_scenes

CPU = Device(torch.device("cpu"), "fp32")


def alike(feats, which, rows):
    cosine = pair_cosine(F.normalize(feats, dim=-1))
    return -cosine, cosine.detach()


def make_net():
    torch.manual_seed(0)
    return nets.ImageEncoder(nets.Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3).eval().requires_grad_(False)


def slopes(room):
    space = Patches(3, 16, torch.Generator().manual_seed(0), CPU, scale=100.0)
    problem = InversionProblem(make_net(), Pool(make_scenes(40).images, CPU), space, alike, room)
    seen = []
    state, measure = problem.step(torch.tensor([0.1, 0.2, 0.3]), torch.arange(3), torch.arange(9), seen.append)
    assert sum(seen) == 27
    return (space.parameters[0].grad, *state, measure)


def test_neither_chunks_nor_what_is_kept_change_a_gradient():
    """The objective couples all images of a batch. A chunk of nine leaves a single image over at chunks of 2, 4, 8."""
    whole = slopes(Room(chunk=64, kept=64))
    assert whole[0].abs().sum() > 0
    for chunk in (2, 4, 8, 16):
        for kept in (0, 64):
            assert all(map(torch.equal, whole, slopes(Room(chunk, kept)))), (chunk, kept)


def test_the_gradient_is_that_of_the_plain_formula():
    space = Patches(3, 16, torch.Generator().manual_seed(0), CPU, scale=100.0)
    keep, add, size = space.make(torch.arange(3))
    images = torch.from_numpy(make_scenes(40).images[:9]).float() / 255
    feats = make_net()((images * keep[:, None] + add[:, None]).clamp(0, 1).flatten(0, 1)).view(3, 9, -1)
    (alike(feats, None, None)[0] + torch.tensor([0.1, 0.2, 0.3]) * size).sum().backward()
    grad = slopes(Room(chunk=4, kept=0))[0]
    assert torch.allclose(grad, space.parameters[0].grad, atol=1e-6 * float(grad.abs().max()) + 1e-9)


class Impatient:
    """A watch whose time is up after some images."""

    def __init__(self, images: int) -> None:
        self.left = images

    def __call__(self, total, unit, label):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def advance(self, count=1):
        self.left -= count
        if self.left < 0:
            raise OutOfTime("the budget was spent")


def search(images):
    space = Patches(2, 16, torch.Generator().manual_seed(0), CPU, scale=100.0)
    course = Course(rounds=30, batch=8, bar=0.9, rates=((0, 0.5),), weight=Weight(start=1e-3, up=5, down=5, patience=6))
    pool = Pool(make_scenes(40).images, CPU)
    return invert(make_gated().requires_grad_(False), pool, space, alike, course, Session(CPU, watch=Impatient(images)))


def test_a_search_whose_time_is_up_answers_with_its_best_state():
    whole, part = search(10**6), search(12 * 16 + 3)
    assert not whole.ended_early and len(whole.trace["size"]) == 30
    assert "made 12 of 30 rounds" in part.ended_early and "--budget" in part.ended_early
    for name, rows in part.trace.items():
        assert np.array_equal(rows, whole.trace[name][:12]), name
    good = part.trace["measure"] > 0.9
    assert part.has_success.tolist() == good.any(0).tolist()
    with pytest.raises(OutOfTime):
        search(3)


def slow_search(monkeypatch, seconds):
    """Search in rounds of a second each, under a budget. Returns the outcome and the rates of the rounds."""
    now, rates = [0.0], []
    monkeypatch.setattr("sslbd_cli.core.session.time.monotonic", lambda: now[0])

    def slow(self, tick, honest=inversion.Search.go_round):
        now[0] += 1
        honest(self, tick)
        rates.append(self.adam.param_groups[0]["lr"])

    monkeypatch.setattr(inversion.Search, "go_round", slow)
    space = Patches(1, 16, torch.Generator().manual_seed(0), CPU)
    course = Course(rounds=30, batch=8, bar=0.9, rates=((0, 0.5), (24, 0.1)), weight=None)
    session = Session(CPU, budget=TimeBudget(seconds))
    outcome = invert(make_net(), Pool(make_scenes(40).images, CPU), space, alike, course, session)
    session.budget.check()  # there is time left to confirm what was found
    return outcome, rates


def test_a_search_leaves_time_to_confirm_what_it_found(monkeypatch):
    part, _ = slow_search(monkeypatch, 10)
    assert "made 8 of 30 rounds" in part.ended_early


def test_a_search_that_lacks_some_time_makes_its_whole_course_in_fewer_rounds(monkeypatch):
    part, rates = slow_search(monkeypatch, 24)  # 20 rounds at most
    assert not part.ended_early and len(rates) == len(part.trace["size"]) == 20
    assert rates[0] == 0.5 and rates[-4:] == [0.1] * 4 and rates.count(0.1) == 4
