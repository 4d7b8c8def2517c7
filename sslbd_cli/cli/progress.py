"""Show long work on standard error: a bar with an ETA on a terminal, plain lines elsewhere.

Only the outermost of several works shows a bar, as a terminal has room for one. Without a terminal a line appears soon
after the start, which tells what the work will cost, and then at least every half minute.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from sslbd_cli import signals
from sslbd_cli.words import message

FIRST, THEN = 3.0, 30.0  # seconds of work until the first plain line, and from one line to the next


class Progress:
    """Count finished units of work. A context manager: call `advance` often and `note` now and then."""

    _has_bar = False  # whether some work shows a bar
    _last_line = 0.0  # when any work last printed a line

    def __init__(self, total: int, unit: str, label: str, *, quiet: bool) -> None:
        self.total, self.unit, self.label, self.quiet = total, unit, label, quiet
        self.done = 0
        self.started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty() and not Progress._has_bar:
            from rich import progress
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn(message(self.label), markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
            Progress._has_bar = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            Progress._has_bar = False

    def advance(self, count: int = 1) -> None:
        """Count units as finished. Without a terminal, print a line now and then. Raises a signal that was lost."""
        signals.check()
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self._is_line_due():
            self._line("")

    def rate(self) -> float:
        """Return units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def note(self, text: str) -> None:
        """Show a remark beside the bar, or as one plain line with rate and ETA."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, note=message(text))
            return
        self._line(f": {text}")

    def _is_line_due(self) -> bool:
        now = time.monotonic()
        is_due = now - max(Progress._last_line, self.started) >= (FIRST if Progress._last_line < self.started else THEN)
        return is_due and not self.quiet and not Progress._has_bar and self.done < self.total

    def _line(self, text: str) -> None:
        if Progress._has_bar:
            return
        left = (self.total - self.done) / max(self.rate(), 1e-9)
        line = f"{self.label} {self.done}/{self.total} {self.unit}, {self.rate():,.0f}/s, ETA {left:.0f} s{text}"
        sys.stderr.write(message(line) + "\n")
        sys.stderr.flush()
        Progress._last_line = time.monotonic()
