"""Invert triggers: optimise many candidate triggers of an encoder as one batch.

The K candidates in a tensor are random starts, classes or clusters. Adam treats each number by itself, and each
candidate has its own weight of size and its own record. So a batch ends as its candidates would one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.loader import Pool, at_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.outliers import anomaly_index, shrinkage
from sslbd_cli.triggers._found import Witness

#: (feats K,B,D of triggered images, numbers of the candidates int64 K, rows of the images int64 B on the CPU) -> loss K
#: and measure K of the candidates. A candidate succeeds if its measure exceeds the bar.
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Space(Protocol):
    """K candidate triggers made of free parameters, each K,... on the device."""

    parameters: list[Tensor]

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keep k,1,H,W, add k,3,H,W and size k of some candidates; images x become clip(keep x + add)."""


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
    after this number of rounds; 0: never.
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

    def rate(self, number: int) -> float:
        """Return the learning rate of a round."""
        return [rate for first, rate in self.rates if number >= first][-1]


@dataclass(frozen=True)
class InvertedTriggers:
    """The smallest success of each candidate, or its last state and an infinite size if it had none.

    keep K,1,H,W, add K,3,H,W, size K: on the CPU. rounds: how long each candidate was optimised. trace: measure, size
    and weight of each round, float32 R,K each, NaN once a candidate has ended.
    """

    keep: Tensor
    add: Tensor
    size: np.ndarray
    rounds: np.ndarray
    trace: dict[str, np.ndarray]

    @property
    def has_success(self) -> np.ndarray:
        """Return which candidates ever succeeded, bool K."""
        has_size: np.ndarray = np.isfinite(self.size)
        return has_size

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

    Candidates go through the encoder in groups that fit into memory. The grouping does not change the gradients.
    """
    count, device = len(space.parameters[0]), pool.device
    problem = InversionProblem(net, pool, space, objective)
    adam = torch.optim.Adam(space.parameters, lr=course.rate(0), betas=(0.5, 0.9))
    record = Record(count, course, device.torch)
    with torch.no_grad():
        keep, add, _ = (part.clone() for part in space.make(torch.arange(count, device=device.torch)))
    batch = min(course.batch, len(pool))
    feed = _batches(len(pool), batch, session.seed)
    with session.work(course.rounds * course.steps * batch * count, "images", "inversion") as ticker:
        for number in range(course.rounds):
            if number % course.look == 0:
                which = record.active.nonzero()[:, 0]
                if not len(which):
                    break
            adam.param_groups[0]["lr"] = course.rate(number)
            measure = torch.zeros(len(which), device=device.torch)
            for _ in range(course.steps):
                adam.zero_grad(set_to_none=True)
                state, part = problem.step(record.weight, which, next(feed))
                measure += part / course.steps
                adam.step()
                ticker.advance(batch * len(which))
            better = record.note(which, measure, state[2])  # the state of the last measure
            fresh = (better | record.best[which].isinf()).view(-1, 1, 1, 1)
            for latest, now in ((keep, state[0]), (add, state[1])):
                latest[which] = torch.where(fresh, now, latest[which])
            if (number + 1) % course.look == 0:
                record.end()
    trace = torch.stack(record.trace, dim=1).cpu().numpy()
    return InvertedTriggers(
        keep.cpu(), add.cpu(), record.best.double().cpu().numpy(), record.rounds.cpu().numpy(),
        dict(zip(("measure", "size", "weight"), trace, strict=True)),
    )  # fmt: skip


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Draw batches of rows, int64 B, in a new order each epoch. Rows that fill no batch are left out of the epoch."""
    for epoch in itertools.count():
        order = torch.randperm(count, generator=generator(seed, "inversion order", epoch))
        yield from torch.split(order[: count - count % batch], batch)


@dataclass(frozen=True)
class InversionProblem:
    """The candidates, their objective, and the encoder that embeds the images of the pool with the triggers."""

    net: ImageEncoder
    pool: Pool
    space: Space
    objective: Objective

    def step(self, weight: Tensor, which: Tensor, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Add up the gradients of one batch. Returns the state of the candidates, and their measures, detached."""
        images = self.pool.batch(rows).float()[None] / 255  # 1,B,3,H,W
        pixels = images.shape[1] * images.shape[3] * images.shape[4]
        groups = []
        for some in torch.split(which, at_once("optimised pixels", self.pool.device.kind, pixels)):
            state = keep, add, size = self.space.make(some)
            stamped_images = (images * keep[:, None] + add[:, None]).clamp(0, 1)
            with self.pool.device.autocast():
                feats = self.net(stamped_images.flatten(0, 1))
            loss, measure = self.objective(feats.unflatten(0, (len(some), -1)), some, rows)
            torch.autograd.backward((loss + weight[some] * size).sum())
            groups.append([part.detach() for part in (*state, measure)])
        *state_all, measures = (torch.cat(parts) for parts in zip(*groups, strict=True))
        return tuple(state_all), measures


# --- triggers made of free parameters -----------------------------------------------------------------------------


class Patches:
    """Masks K,1,H,W and patterns K,3,H,W in [0,1]. Every pixel is free: it is the tanh of a parameter.

    Both start uniformly at random. A candidate's size is `scale` times the mean of the mask. by_pattern: the mean of
    mask times pattern instead, so that black pixels cost nothing.
    """

    def __init__(
        self, count: int, side: int, gen: torch.Generator, device: Device, scale: float = 1.0, by_pattern: bool = False
    ) -> None:
        start = torch.rand(count, 4, side, side, generator=gen)
        free = torch.atanh((2 * start - 1) * (1 - 1e-7)).to(device.torch)
        self.parameters = [free.requires_grad_()]
        self.scale, self.by_pattern = scale, by_pattern

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.tanh(self.parameters[0][which]) / 2 + 0.5
        mask, pattern = parts[:, :1], parts[:, 1:]
        add = mask * pattern
        return 1 - mask, add, self.scale * (add if self.by_pattern else mask).mean((1, 2, 3))


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


def smallest(candidates: InvertedTriggers, what: str, least: int, index: str, double: bool = False) -> Outlier:
    """Measure how far the smallest trigger lies below the others.

    what: plural of what the triggers belong to, such as "classes". least: number of triggers that are needed. index: a
    key of BARS. double: scale the MAD twice (`anomaly_index`).
    """
    sizes, count = candidates.size[candidates.has_success], len(candidates.size)
    below, doubt = np.zeros(count), ""
    if len(sizes):
        below[candidates.has_success] = shrinkage(sizes) if index == "ratio" else anomaly_index(sizes, double)
    if len(sizes) < least:
        doubt = f"triggers of {len(sizes)} of {count} {what} converged, too few for an outlier; give more rounds"
    elif index == "mad" and not below.any():
        doubt = f"the triggers of half of the {what} are of one size, so that none is an outlier"
    summary = {
        "size": float(sizes.min()) if len(sizes) else None,
        "median_size": float(np.median(sizes)) if len(sizes) else None,
        f"{what}_converged": len(sizes),
        f"{what}_failed": count - len(sizes),
        "rounds": int(candidates.rounds.max()),
    }
    return Outlier(int(np.argmin(candidates.size)), bool(len(sizes)), below, doubt, summary)
