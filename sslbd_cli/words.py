"""Words of messages: numbers, a line that is safe to print, what an error says, what a wrong name may have meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LEAST_CHANCE = 1e-15  # p-values below are differences of numbers near 1
LONGEST = 200  # characters of another library's error message


def one_line(text: object, instead: str = " ") -> str:
    """Return text without anything that could break a line or drive a terminal: others may have written it."""
    return "".join(c if c.isprintable() else instead for c in str(text))


def reason(error: BaseException | str) -> str:
    """Return what an error says in one printable line, without the file name that an OSError repeats."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(text.split()), "?")[:LONGEST] or type(error).__name__


def did_you_mean(got: str, known: Sequence[str]) -> str:
    """Return a question that ends in a space, where a wrong name is near a known one; else nothing."""
    import difflib  # only for mistakes: every command would wait for it

    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""


def suggest(got: str, known: Sequence[str], intro: str) -> str:
    """Say what a wrong name may have meant, and which names there are."""
    return f"{did_you_mean(got, known)}{intro} {', '.join(known)}"


def number(value: float) -> str:
    """Write a number with four significant digits; whole numbers and large ones with thousands apart."""
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3e}"
    return f"{value:.4g}"


def chance(p_value: float) -> str:
    """Write a p-value; one that is lost in rounding is not nothing."""
    return number(p_value) if p_value >= LEAST_CHANCE else f"below {LEAST_CHANCE:g}"


def finite(value: Any) -> Any:
    """Copy results with NaN and infinity as None and numpy scalars as Python's own."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
