"""The session of one run: device, seed, progress, memory and time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sslbd_cli.core.cache import EmbeddingCache
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.watch import Ticker, Watch, unwatched
from sslbd_cli.errors import OutOfTime


class TimeBudget:
    """The seconds that a run may take from now on; None means no limit."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def is_spent(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.started > self.seconds

    def check(self) -> None:
        """Raise OutOfTime if the seconds are spent."""
        if self.is_spent():
            raise OutOfTime(f"the budget of {self.seconds:g} s was spent")


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

    watch: shows progress. memory: bytes that images may take on the device; None: half of the free memory. budget: the
    time that the run has. embeddings: earlier embeddings of this run; None: nothing is kept, as for a stream of images.
    """

    device: Device
    seed: int = 0
    watch: Watch = unwatched
    memory: int | None = None
    budget: TimeBudget = field(default_factory=TimeBudget)
    embeddings: EmbeddingCache | None = field(default_factory=EmbeddingCache, repr=False, compare=False)

    def exact(self) -> Session:
        """Return the session with fp32 arithmetic, for work that is too delicate for bf16."""
        return replace(self, device=Device(self.device.torch, "fp32"))

    def with_seed(self, seed: int) -> Session:
        """Return the session with another seed."""
        return replace(self, seed=seed)

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
