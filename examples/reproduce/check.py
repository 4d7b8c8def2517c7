"""Compare what was measured with what was expected: per number `reproduced`, `outside tolerance` or `not run`.

    check.py expected.json measured.json

Exits with 1 where a number is outside its tolerance. An expected number names a measurement (`SECTION/METHOD/KIND:KEY`,
or an operation on several: `["difference", A, B]`), the scale it holds at, and the bounds of our tolerance.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPRODUCED, OUTSIDE, NOT_RUN = "reproduced", "outside tolerance", "not run"
OPERATIONS: dict[str, Callable[..., float]] = {
    "difference": lambda a, b: a - b,
    "ratio": lambda a, b: a / b if b else float("inf"),
    "least": min,
    "mean": lambda *parts: statistics.mean(parts),
}


class Verdict(NamedTuple):
    """What became of an expected number: the measured mean, if there is one, and why it was not run, if so."""

    text: str
    measured: float | None = None
    why: str = ""


def mean(scale: dict, measure: str | list) -> float | None:
    """Return a measurement's mean over its seeds, or None where a part of it was not run."""
    if isinstance(measure, list):
        parts = [mean(scale, part) for part in measure[1:]]
        return None if None in parts else OPERATIONS[measure[0]](*parts)
    row, key = measure.rsplit(":", 1)
    values = scale["rows"].get(row, {}).get("values", {}).get(key)
    return statistics.mean(values) if values else None


def fewest_seeds(scale: dict, measure: str | list) -> int:
    """Return the number of seeds of the part of a measurement that has the fewest."""
    if isinstance(measure, list):
        return min(fewest_seeds(scale, part) for part in measure[1:])
    return len(scale["rows"][measure.rsplit(":", 1)[0]]["seeds"])


def verdict(number: dict, measured: dict) -> Verdict:
    """Judge one expected number."""
    if number["bounds"] is None:
        return Verdict(NOT_RUN, why=number["reason"])
    scale = measured.get(number["scale"])
    found = mean(scale, number["measure"]) if scale else None
    if scale is None or found is None:
        return Verdict(NOT_RUN, why=f"needs SCALE={number['scale']}")
    seeds = fewest_seeds(scale, number["measure"])
    if seeds < number.get("seeds", 1):
        return Verdict(NOT_RUN, found, f"{seeds} of {number['seeds']} seeds")
    low, high = number["bounds"]
    inside = (low is None or found >= low) and (high is None or found <= high)
    return Verdict(REPRODUCED if inside else OUTSIDE, found)


def bounds(number: dict) -> str:
    """Say a number's tolerance."""
    low, high = number["bounds"] or (None, None)
    if low is None or high is None:
        return "none" if low == high else f">= {low:g}" if high is None else f"<= {high:g}"
    return f"{low:g} to {high:g}"


def published(number: dict) -> str:
    """Say what was published: a number, a range, or nothing."""
    value = number.get("published")
    return "-" if value is None else "-".join(f"{v:g}" for v in (value if isinstance(value, list) else [value]))


def line(number: dict, judged: Verdict) -> str:
    """Return one line: verdict, id, measured, tolerance, published, and its evidence or why it was not run."""
    shown = "-" if judged.measured is None else f"{judged.measured:.2f}"
    rest = judged.why or f"{number['source']} [{number['tag']}]"
    return (
        f"{judged.text:18} {number['id']:36} measured {shown:>7}  tolerance {bounds(number):12} "
        f"published {published(number):>7} {number['unit']:6} {rest}"
    )


def main(expected: Path, measured: Path) -> int:
    """Print a line per number; return the exit status."""
    numbers = json.loads(expected.read_text())["numbers"]
    found = json.loads(measured.read_text()) if measured.exists() else {}
    judged = [(number, verdict(number, found)) for number in numbers]
    for number, outcome in judged:
        print(line(number, outcome))
    return int(any(outcome.text == OUTSIDE for _, outcome in judged))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
