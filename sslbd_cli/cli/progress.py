"""Show long work on standard error: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Count finished units of work. A context manager: call `advance` often and `note` now and then."""

    def __init__(self, total: int, unit: str, label: str, *, quiet: bool) -> None:
        self.total, self.unit, self.label, self.quiet = total, unit, label, quiet
        self.done = 0
        self.started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn(self.label),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count units as finished."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def rate(self) -> float:
        """Return units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def note(self, text: str) -> None:
        """Show a remark beside the bar, or as one plain line with rate and ETA."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, note=text)
            return
        left = (self.total - self.done) / max(self.rate(), 1e-9)
        line = f"{self.label} {self.done}/{self.total} {self.unit}, {self.rate():,.0f}/s, ETA {left:.0f} s: {text}"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
