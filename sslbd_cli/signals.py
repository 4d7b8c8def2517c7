"""Signals that end a run. Each is raised as an exception, so that temporary files are removed, and also noted.

An exception that is raised inside a hook, a finaliser or a callback of a library is lost. So long work, and whatever
puts an output in place, looks at the note, too.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_arrived: list[int] = []


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. Unwind, so that temporary files are removed, then end by the signal."""


def listen() -> None:
    """Raise and note signals from now on. Those that the caller has told this process to ignore stay ignored."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)
    sys.unraisablehook = _report_lost


def release() -> None:
    """Let signals end the process at once, as they do by default."""
    for number in ENDING:
        if signal.getsignal(number) == _note:
            signal.signal(number, signal.SIG_DFL)


def arrived() -> int | None:
    """Return the first signal that arrived; None if there was none."""
    return _arrived[0] if _arrived else None


def check() -> None:
    """Raise the signal that arrived again, in case that its first exception was lost."""
    if _arrived:
        raise _exception(_arrived[0])


def _note(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    raise _exception(number)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def _report_lost(lost: Any) -> None:
    """Say nothing of a signal's exception that was lost, because `check` raises it again."""
    if not (_arrived and issubclass(lost.exc_type, (KeyboardInterrupt, Terminated))):
        sys.__unraisablehook__(lost)
