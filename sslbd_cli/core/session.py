"""What one run computes with: the device, the seed, who watches, how much memory and how much time it has."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from sslbd_cli.core.cache import EmbeddingCache
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.watch import Ticker, Watch, unwatched
from sslbd_cli.errors import OutOfTime


class TimeBudget:
    """The seconds that a run may take, counted from now; None is no limit."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def is_spent(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.started > self.seconds

    def check(self) -> None:
        """Raise OutOfTime when the seconds are spent."""
        if self.is_spent():
            raise OutOfTime(f"the budget of {self.seconds:g} s was spent")


class _Timed:
    """A ticker that passes everything on and looks at the budget each time."""

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
    """Everything that travels with the work of one run.

    watch: shows progress. memory: bytes that images may take on the device, None for half of what is free there.
    budget: the time that the run has. embeddings: what encoders said of images before, kept for the whole run.
    """

    device: Device
    seed: int = 0
    watch: Watch = unwatched
    memory: int | None = None
    budget: TimeBudget = field(default_factory=TimeBudget)
    embeddings: EmbeddingCache = field(default_factory=EmbeddingCache, repr=False, compare=False)

    def exact(self) -> Session:
        """Return the session with fp32 arithmetic, for work that bf16 would spoil."""
        return replace(self, device=Device(self.device.torch, "fp32"))

    def with_seed(self, seed: int) -> Session:
        """Return the session with another seed."""
        return replace(self, seed=seed)

    def generator(self, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the random generator of this seed and purpose."""
        return generator(self.seed, *purpose, device=device)

    @contextlib.contextmanager
    def work(self, total: int, unit: str, label: str) -> Iterator[Ticker]:
        """Show a loop of `total` units, whose ticker also looks at the budget.

        Raises OutOfTime at the first `advance` or `note` after the budget is spent.
        """
        self.budget.check()
        with self.watch(total, unit, label) as ticker:
            yield _Timed(ticker, self.budget)
