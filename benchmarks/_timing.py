"""Measure CPU seconds of several alternatives in turn."""

import time
from collections.abc import Callable
from typing import Any


def timed(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time the alternatives in turn, after one warm-up round if there are several. Return seconds and results."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for number in range(repeats + (repeats > 1)):
        for name, way in ways.items():
            started = time.process_time()
            results[name] = way()
            if number or repeats == 1:
                times[name].append(time.process_time() - started)
    return times, results
