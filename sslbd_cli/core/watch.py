"""Progress of long work. This module needs no torch, so that `sslbd data`, which uses no device, starts at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Ticker(Protocol):
    """Receives progress: counts of finished units and occasional remarks."""

    def advance(self, count: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


class Voice(Protocol):
    """Tells the user something while the work goes on."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


#: (total, unit, label) -> a context that yields a Ticker.
Watch = Callable[[int, str, str], AbstractContextManager[Ticker]]


class Silent:
    """A ticker that shows nothing."""

    def advance(self, count: int = 1) -> None:
        """Ignore the count."""

    def note(self, text: str) -> None:
        """Ignore the remark."""


@contextlib.contextmanager
def unwatched(total: int, unit: str, label: str) -> Iterator[Silent]:
    """Watch work that is too small to show."""
    yield Silent()
