"""Invert triggers: optimise many candidate triggers of an encoder as one batch.

The K candidates in a tensor are random starts, classes or clusters. Adam treats each number by itself, and each
candidate has its own weight of size and its own record. So a batch ends as its candidates would one after another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import TimeShare
from sslbd_cli.detect.gradients import room_for
from sslbd_cli.detect.inversion.problem import InversionProblem, Objective, Space
from sslbd_cli.detect.outliers import anomaly_index, shrinkage
from sslbd_cli.errors import OutOfTime
from sslbd_cli.triggers._found import Witness

#: Share of the time left that a search may take. The rest is for confirming what it found.
SEARCHED = 0.85
LEAST_PART = 0.5  # of the rounds of a course: what a search must have made by the end of its time, to count
SHRINKING = 0.1  # share by which triggers may shrink in the last quarter of a search that counts as converged


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Schedule of the weight that a candidate's size has in its loss.

    After `patience` successful rounds in a row the weight is multiplied by `up`, if it is below `most`. After
    `patience` failed rounds it is divided by `down`, if it is at least `least`. late: the weight is 0 until the first
    `patience` successes, which set it to `start`. revive: a weight below `least` returns to `start` after more than
    this number of successes in a row; 0: never.
    """

    start: float
    up: float
    down: float
    patience: int
    late: bool = False
    least: float = 0.0
    most: float = float("inf")
    revive: int = 0


@dataclass(frozen=True, kw_only=True)
class Course:
    """How candidates are optimised. A round is `steps` steps of `batch` images; then success is checked.

    bar: a round is a success if its mean measure exceeds this. rates: first round and learning rate of Adam. look:
    rounds between checks whether candidates end. stale: a candidate ends after more than this number of rounds without
    a success smaller by the factor `gain`; 0: never. both_ways: only if its weight has been raised and lowered.
    steady: only if its mean measure since the last check is a success. give_up: a candidate without any success ends
    after this number of rounds; 0: never. searched: share of the time left that the search may take; the rest is for
    confirming.
    """

    rounds: int
    batch: int
    bar: float
    rates: tuple[tuple[int, float], ...]
    weight: Weight | None
    steps: int = 1
    look: int = 1
    stale: int = 0
    gain: float = 1.0
    both_ways: bool = False
    steady: bool = False
    give_up: int = 0
    searched: float = SEARCHED

    def rate(self, number: int) -> float:
        """Return the learning rate of a round."""
        return [rate for first, rate in self.rates if number >= first][-1]


@dataclass(frozen=True)
class InvertedTriggers:
    """The smallest success of each candidate, or its last state and an infinite size if it had none.

    keep K,1,H,W, add K,3,H,W, size K: on the CPU. rounds: how long each candidate was optimised. trace: measure, size
    and weight of each round, float32 R,K each, NaN once a candidate has ended. ended_early: why the search ended before
    its course; empty if it did not.
    """

    keep: Tensor
    add: Tensor
    size: np.ndarray
    rounds: np.ndarray
    trace: dict[str, np.ndarray]
    ended_early: str = ""

    @property
    def has_success(self) -> np.ndarray:
        """Return which candidates ever succeeded, bool K."""
        has_size: np.ndarray = np.isfinite(self.size)
        return has_size

    def are_shrinking(self, bar: float) -> bool:
        """Tell whether the smallest successes were still falling at the end: by a tenth in the last quarter.

        A success has a measure above `bar`. It is the median over the candidates that have any.
        """
        sizes = np.where(np.nan_to_num(self.trace["measure"], nan=-np.inf) > bar, self.trace["size"], np.inf)
        smallest = np.minimum.accumulate(sizes)[:, self.has_success]  # R,K
        if not smallest.size:
            return False
        return bool(np.median(smallest[-1] / smallest[3 * len(smallest) // 4]) < 1 - SHRINKING)

    def witness(self, number: int) -> Witness:
        """Return a candidate as a trigger."""
        return Witness(self.keep[number], self.add[number])

    def pictures(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Draw mask and pattern of each candidate, and an image uint8 3,H,W with it: uint8 K,3,H,W each."""
        mask = 1 - self.keep.expand(-1, 3, -1, -1)
        pattern = self.add / mask.clamp(min=1e-6)
        base = torch.from_numpy(np.array(image))[None] / 255
        views = {"mask": mask, "pattern": pattern, "with it": base * self.keep + self.add}
        return {name: (part.clamp(0, 1) * 255).round().byte().numpy() for name, part in views.items()}

    def arrays(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays that a report keeps of all candidates. scores: float K, higher is more suspicious."""
        arrays = {
            "candidates/keep": self.keep.numpy(),
            "candidates/add": self.add.numpy(),
            "candidates/size": self.size,
        }
        arrays["pictures/score"] = np.asarray(scores, np.float64)
        return arrays | {f"trace/{name}": values for name, values in self.trace.items()}


class Record:
    """State of K candidates while they are optimised: weights, streaks and the smallest success of each."""

    def __init__(self, count: int, course: Course, device: torch.device) -> None:
        self.course = course
        weight = course.weight
        self.weight = torch.full((count,), weight.start if weight and not weight.late else 0.0, device=device)
        self.good, self.bad, self.streak, self.stale, self.rounds = torch.zeros(5, count, dtype=torch.long).to(device)
        self.was_raised, self.was_lowered = torch.zeros(2, count, dtype=torch.bool, device=device)
        self.best, self.mark = torch.full((2, count), float("inf"), device=device)
        self.active = torch.ones(count, dtype=torch.bool, device=device)
        self.trace: list[Tensor] = []

    def note(self, which: Tensor, measure: Tensor, size: Tensor) -> Tensor:
        """Record mean measures and sizes, k each, of a round. Returns which reached their smallest success, bool k."""
        row = torch.full((3, len(self.best)), float("nan"), device=measure.device)
        row[:, which] = torch.stack([measure, size, self.weight[which]])
        self.trace.append(row)
        took = torch.zeros_like(self.active)
        took[which] = True
        good = took & (row[0] > self.course.bar)
        better = good & (row[1] < self.best)
        self.best = torch.where(better, row[1], self.best)
        is_smaller = self.best < self.course.gain * self.mark
        self.mark = torch.where(is_smaller, self.best, self.mark)
        self.stale = torch.where(is_smaller, 0, self.stale + (took & self.best.isfinite()))
        self.rounds += took
        if self.course.weight is not None:
            self._weigh(good, took & ~good)
        best_yet: Tensor = better[which]
        return best_yet

    def _weigh(self, good: Tensor, bad: Tensor) -> None:
        rule = self.course.weight
        assert rule is not None
        self.streak = torch.where(good, self.streak + 1, 0)
        self.good = torch.where(good, self.good + 1, 0)
        self.bad = torch.where(bad, self.bad + 1, 0)
        up, down = self.good >= rule.patience, self.bad >= rule.patience
        self.good[up], self.bad[down] = 0, 0
        first = up & (self.weight == 0)
        down &= (self.weight > 0) & (self.weight >= rule.least)
        is_raised = up & ~first & (self.weight < rule.most)
        self.was_raised |= is_raised
        self.was_lowered |= down
        self.weight = torch.where(is_raised, self.weight * rule.up, self.weight)
        self.weight = torch.where(down, self.weight / rule.down, self.weight)
        if rule.revive:
            first |= (self.weight < rule.least) & (self.streak > rule.revive)
        self.weight = torch.where(first, rule.start, self.weight)

    def end(self) -> None:
        """End the candidates that are done by the rules of the course."""
        course, is_done = self.course, torch.zeros_like(self.active)
        if course.stale:
            is_done = self.stale > course.stale
            if course.both_ways:
                is_done &= self.was_raised & self.was_lowered
            if course.steady:
                is_done &= torch.stack([row[0] for row in self.trace[-course.look :]]).nanmean(0) > course.bar
        if course.give_up:
            is_done |= self.best.isinf() & (self.rounds >= course.give_up)
        self.active &= ~is_done


def invert(
    net: ImageEncoder, pool: Pool, space: Space, objective: Objective, course: Course, session: Session
) -> InvertedTriggers:
    """Optimise all candidates of a space together. The encoder is in eval mode and its parameters take no gradient.

    If the session's budget is too small for all rounds, the course follows the clock and leaves a part of the time to
    confirm what was found. A search of less than half of its rounds ended early. Raises OutOfTime if the budget does
    not suffice for one round.
    """
    room = room_for(net, pool.images.shape[-1], session)
    left = session.budget.left()
    timed_session = session if math.isinf(left) else session.within(course.searched * left)
    clock = TimeShare(timed_session.budget.left())
    search = Search(InversionProblem(net, pool, space, objective, room), course, session.seed, clock)
    try:
        with timed_session.work(search.images(), "images", "inversion") as ticker:
            while search.is_open():
                search.go_round(ticker.advance)
    except OutOfTime:
        if not search.record.trace:
            raise
    return search.outcome()


class Search:
    """A search under way: its candidates, their record, and the smallest success of each, or its last state."""

    def __init__(self, problem: InversionProblem, course: Course, seed: int, clock: TimeShare) -> None:
        self.problem, self.course, self.space, self.clock = problem, course, problem.space, clock
        device = problem.pool.device.torch
        self.count = len(self.space.parameters[0])
        self.record = Record(self.count, course, device)
        with torch.no_grad():
            everyone = torch.arange(self.count, device=device)
            self.keep, self.add, _ = (part.clone() for part in self.space.make(everyone))
        self.batch = min(course.batch, len(problem.pool))
        self.feed = _batches(len(problem.pool), self.batch, seed)
        self.adam = torch.optim.Adam(self.space.parameters, betas=(0.5, 0.9))
        self.which = everyone

    def images(self) -> int:
        """Return how many stamped images the whole search needs at most."""
        return self.course.rounds * self.course.steps * self.batch * self.count

    def stage(self) -> int:
        """Return the round of the course that is next. Rounds for which there is no time are left out."""
        return max(len(self.record.trace), int(self.clock.elapsed() * self.course.rounds))

    def is_open(self) -> bool:
        """Return whether a round is left, and a candidate that has not ended."""
        if len(self.record.trace) % self.course.look == 0:
            self.which = self.record.active.nonzero()[:, 0]
        is_first = not self.record.trace
        return (is_first or self.stage() < self.course.rounds) and len(self.which) > 0

    def go_round(self, tick: Callable[[int], None]) -> None:
        """Make the steps of one round and note its measures. tick: is told how many images were stamped."""
        course, record, which, number = self.course, self.record, self.which, len(self.record.trace)
        self.adam.param_groups[0]["lr"] = course.rate(self.stage())
        measure = torch.zeros(len(which), device=which.device)
        for _ in range(course.steps):
            self.adam.zero_grad(set_to_none=True)
            state, part = self.problem.step(record.weight, which, next(self.feed), tick)
            measure += part / course.steps
            self.adam.step()
        better = record.note(which, measure, state[2])  # the state of the last measure
        fresh = (better | record.best[which].isinf()).view(-1, 1, 1, 1)
        for latest, now in ((self.keep, state[0]), (self.add, state[1])):
            latest[which] = torch.where(fresh, now, latest[which])
        if (number + 1) % course.look == 0:
            record.end()

    def outcome(self) -> InvertedTriggers:
        """Return what was found so far."""
        record, made, ended_early = self.record, len(self.record.trace), ""
        if record.active.any() and made < LEAST_PART * self.course.rounds:
            ended_early = f"the search made {made} of {self.course.rounds} rounds in its time; give more as --budget"
        trace = torch.stack(record.trace, dim=1).cpu().numpy()
        return InvertedTriggers(
            self.keep.cpu(), self.add.cpu(), record.best.double().cpu().numpy(), record.rounds.cpu().numpy(),
            dict(zip(("measure", "size", "weight"), trace, strict=True)), ended_early,
        )  # fmt: skip


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Draw batches of rows, int64 B, in a new order each epoch. Rows that fill no batch are left out of the epoch."""
    for epoch in itertools.count():
        order = torch.randperm(count, generator=generator(seed, "inversion order", epoch))
        yield from torch.split(order[: count - count % batch], batch)


# --- the outlier --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlier:
    """The smallest trigger among those of classes or clusters. index: float K, 0 without a success.

    is_any: whether any candidate succeeded; otherwise the target means nothing. doubt: why the index cannot be trusted;
    empty if it can. summary: plain values for the report.
    """

    target: int
    is_any: bool
    index: np.ndarray
    doubt: str
    summary: dict[str, Any]


#: Kind of index -> the value above which the smallest trigger is an outlier. mad: in median absolute deviations, as
#: published; with ten sizes the deviation varies by chance, and a backdoor widens it, because the triggers of its
#: neighbours are small, too. ratio: in powers of e.
BARS = {"mad": 2.0, "ratio": 1.0}


def smallest(
    candidates: InvertedTriggers, what: str, least: int, index: str, double: bool = False, bar: float | None = None
) -> Outlier:
    """Measure how far the smallest trigger lies below the others.

    what: plural of what the triggers belong to, such as "classes". least: number of triggers that are needed. index: a
    key of BARS. double: scale the MAD twice (`anomaly_index`). bar: of a success; if given, triggers that were still
    shrinking when the search ended prove nothing.
    """
    sizes, count = candidates.size[candidates.has_success], len(candidates.size)
    below, doubt = np.zeros(count), ""
    if len(sizes):
        below[candidates.has_success] = shrinkage(sizes) if index == "ratio" else anomaly_index(sizes, double)
    if len(sizes) < least:
        doubt = f"triggers of {len(sizes)} of {count} {what} converged, too few for an outlier; give more rounds"
    elif bar is not None and candidates.are_shrinking(bar):
        doubt = f"the triggers of the {what} were still shrinking when the search ended; give more rounds"
    elif index == "mad" and not below.any():
        doubt = f"the triggers of half of the {what} are of one size, so that none is an outlier"
    doubt = candidates.ended_early or doubt
    summary = {
        "size": float(sizes.min()) if len(sizes) else None,
        "median_size": float(np.median(sizes)) if len(sizes) else None,
        f"{what}_converged": len(sizes),
        f"{what}_failed": count - len(sizes),
        "rounds": int(candidates.rounds.max()),
    }
    return Outlier(int(np.argmin(candidates.size)), bool(len(sizes)), below, doubt, summary)
