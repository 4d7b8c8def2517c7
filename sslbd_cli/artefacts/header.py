"""The JSON header of an artefact: parse text from strangers into values that are safe to walk."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.artefacts.history import MOST, History, is_history, unfolded
from sslbd_cli.errors import InputError

FORMAT = 2  # what is written; in files of format 1, the commands that made an input stand in the input's own row
FORMATS = (1, FORMAT)
LONGEST = 64 << 20  # characters of a header
DEEPEST = 200  # levels of nested JSON; bounded, because later code recurses into the header


def parse(text: str) -> tuple[dict[str, Any], str | None, History]:
    """Return the fields of the kind (including `kind` itself), the recorded digest (or None) and the history.

    Raises InputError if the text is not an sslbd header.
    """
    if len(text) > LONGEST:
        raise InputError(f"its header is longer than {LONGEST >> 20} MB")
    try:
        header = json.loads(text, parse_float=finite, parse_int=whole, parse_constant=finite)
    except (ValueError, RecursionError):
        raise InputError("its sslbd header is not JSON: the file is damaged") from None
    if not isinstance(header, dict) or header.pop("format", None) not in FORMATS:
        raise InputError(f"its header is not sslbd format {' or '.join(map(str, FORMATS))}")
    if not is_shallow(header):
        raise InputError("its header is nested absurdly deep")
    history = header.pop("history", [])
    if not is_history(history):
        raise InputError("its history is damaged")
    if len(history) > MOST:
        raise InputError(f"its history holds more than {MOST} commands")
    return header, header.pop("sha256", None), unfolded(history)


def dump(fields: dict[str, Any]) -> str:
    """Return a header's text. Raises InputError if `parse` would refuse it."""
    text = canonical(fields)
    if len(text) > LONGEST or not is_shallow(fields) or len(fields.get("history", ())) > MOST:
        raise InputError("cannot write it: its header is too long, or nested too deep, to be read again")
    return text


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number within float64's range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def whole(text: str) -> int:
    """Parse a whole number of JSON. Raises ValueError if it is beyond float64's range, as no number of ours is."""
    if len(text) > 300:
        raise ValueError("a number beyond all bounds")
    return int(text)


def is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        boxes = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [child for box in boxes for child in box]
        if not level:
            return True
    return False
