"""Words of messages: numbers, lines that are safe to print, reasons of errors, and suggestions for wrong names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

LEAST_CHANCE = 1e-15  # smaller p-values are lost in rounding, as differences of numbers near 1
HEAD, TAIL = 1500, 500  # characters that are shown of a longer message; advice stands at its end
LONGEST = 200  # characters to show of another library's error message


def one_line(text: object, instead: str = " ") -> str:
    """Return text on one line and without terminal controls, because others may have written it."""
    return "".join(c if c.isprintable() else instead for c in str(text))


def message(text: object) -> str:
    """Return a message as the terminal may show it: on one line, short, and with escapes for what controls a terminal.

    Every message goes through here, because names, headers and reasons in it may come from a file of anyone's.
    """
    line = " ".join(str(text).split())
    if len(line) > HEAD + TAIL:
        line = f"{line[:HEAD]} [...] {line[-TAIL:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def reason(error: BaseException | str) -> str:
    """Return an error's text in one printable line, without the file name that an OSError repeats."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(text.split()), "?")[:LONGEST] or type(error).__name__


def did_you_mean(got: str, known: Sequence[str]) -> str:
    """Return a question, with a space at its end, if a wrong name is near a known one; else ""."""
    import difflib  # imported only for mistakes, because every command would wait for it

    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""


def suggest(got: str, known: Sequence[str], intro: str) -> str:
    """Return what a wrong name may have meant, and the known names."""
    return f"{did_you_mean(got, known)}{intro} {', '.join(known)}"


def split_commas(text: str) -> list[str]:
    """Split a list at its commas. A backslash before a comma or a backslash makes it a part of the item."""
    items = [""]
    for piece in re.findall(r"\\[\\,]|.", text, re.DOTALL):
        if piece == ",":
            items.append("")
        else:
            items[-1] += piece[1:] if len(piece) == 2 else piece
    return items


def escape_commas(item: str) -> str:
    """Return an item as it is written in a list that `split_commas` splits."""
    return item.replace("\\", "\\\\").replace(",", "\\,")


def first_names(names: Sequence[str], most: int) -> str:
    """Return the first names, joined by commas, and dots if there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def number(value: float) -> str:
    """Return a number with four significant digits; whole and large numbers with thousands separators."""
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3e}"
    return f"{value:.4g}"


def chance(p_value: float) -> str:
    """Return a p-value as text. A value that is lost in rounding is shown as a bound, not as 0."""
    return number(p_value) if p_value >= LEAST_CHANCE else f"below {LEAST_CHANCE:g}"


def finite(value: Any) -> Any:
    """Copy results with None for NaN and infinity, and with Python scalars for numpy's."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
