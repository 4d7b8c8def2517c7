"""The session of one run: device, seed, progress, memory and time."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from sslbd_cli.core.cache import EmbeddingCache
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.loader import Pool, free_memory, rows_at_once
from sslbd_cli.core.watch import Ticker, Watch, unwatched
from sslbd_cli.errors import OutOfTime


class TimeBudget:
    """The seconds that a run may take from now on; None means no limit. within: a budget that this one is a part of."""

    def __init__(self, seconds: float | None = None, within: TimeBudget | None = None) -> None:
        self.seconds, self.within, self.started = seconds, within, time.monotonic()

    def left(self) -> float:
        """Return the seconds that are left, at least 0; infinity without a limit."""
        own = math.inf if self.seconds is None else max(0.0, self.seconds - (time.monotonic() - self.started))
        return own if self.within is None else min(own, self.within.left())

    def is_limited(self) -> bool:
        return math.isfinite(self.left())

    def is_spent(self) -> bool:
        return self.left() <= 0

    def check(self) -> None:
        """Raise OutOfTime if the seconds are spent."""
        if self.within is not None:
            self.within.check()
        if self.is_spent():
            what = "the budget of" if self.within is None else "its share of the budget,"
            raise OutOfTime(f"{what} {self.seconds:.4g} s was spent")


class _Timed:
    """A ticker that forwards every call and then checks the budget."""

    def __init__(self, ticker: Ticker, budget: TimeBudget) -> None:
        self.ticker, self.budget = ticker, budget

    def advance(self, count: int = 1) -> None:
        self.ticker.advance(count)
        self.budget.check()

    def note(self, text: str) -> None:
        self.ticker.note(text)
        self.budget.check()


@dataclass(frozen=True)
class Session:
    """Hold everything that travels with the work of one run.

    watch: shows progress. memory: bytes that images and one batch may take, each, on the device; 0: a quarter of what
    is free. budget: the time that the run has. embeddings: earlier embeddings of this run; None: nothing is kept, as
    for a stream of images.
    """

    device: Device
    seed: int = 0
    watch: Watch = unwatched
    memory: int = 0
    budget: TimeBudget = field(default_factory=TimeBudget)
    embeddings: EmbeddingCache | None = field(default_factory=EmbeddingCache, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.memory:
            object.__setattr__(self, "memory", free_memory(self.device) // 4)

    def exact(self) -> Session:
        """Return the session with fp32 arithmetic, for work that is too delicate for bf16."""
        return replace(self, device=Device(self.device.torch, "fp32"))

    def with_seed(self, seed: int) -> Session:
        """Return the session with another seed."""
        return replace(self, seed=seed)

    def with_memory(self, memory: int) -> Session:
        """Return the session with another number of bytes."""
        return replace(self, memory=memory)

    def within(self, seconds: float) -> Session:
        """Return the session with a part of the time that is left."""
        return replace(self, budget=TimeBudget(seconds, self.budget))

    def rows_at_once(self, network: nn.Module, size: int, *, gradients: bool = False) -> int:
        """Return how many images of `size` pixels go through a network at once (`loader.rows_at_once`)."""
        return rows_at_once(network, size, self.device, self.memory, gradients=gradients)

    def pool(self, images: np.ndarray) -> Pool:
        """Return a pool of images uint8 N,3,H,W, which lie on the device if they fit into the memory of the run."""
        return Pool(images, self.device, memory=self.memory)

    def generator(self, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the random generator of this seed and purpose."""
        return generator(self.seed, *purpose, device=device)

    @contextlib.contextmanager
    def work(self, total: int, unit: str, label: str) -> Iterator[Ticker]:
        """Show a loop of `total` units. Its ticker also checks the budget.

        Raises OutOfTime at the first `advance` or `note` after the budget is spent.
        """
        self.budget.check()
        with self.watch(total, unit, label) as ticker:
            yield _Timed(ticker, self.budget)
