"""The JSON header of an artefact: parse text from strangers into values that are safe to walk."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from sslbd_cli.errors import InputError

FORMAT = 1
DEEPEST = 200  # levels of nested JSON; bounded, because later code recurses into the header


def parse(text: str) -> tuple[dict[str, Any], str | None, tuple[dict[str, Any], ...]]:
    """Return the fields of the kind (including `kind` itself), the recorded digest (or None) and the history.

    Raises InputError if the text is not an sslbd header.
    """
    try:
        header = json.loads(text, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        raise InputError("its sslbd header is not JSON: the file is damaged") from None
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise InputError(f"its header is not sslbd format {FORMAT}")
    if not is_shallow(header):
        raise InputError("its header is nested absurdly deep")
    history = header.pop("history", [])
    if not _is_history(history):
        raise InputError("its history is damaged")
    return header, header.pop("sha256", None), tuple(history)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number within float64's range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        boxes = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [child for box in boxes for child in box]
        if not level:
            return True
    return False


def _is_history(value: Any) -> bool:
    """Return whether a value is a list of history entries; their inputs may have histories, too."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("command"), str)
        and isinstance(entry.get("args"), dict)
        and isinstance(entry.get("inputs"), list)
        and all(map(_is_source, entry["inputs"]))
        for entry in value
    )


def _is_source(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in ("option", "kind", "sha256"))
        and _is_history(row.get("history", []))
    )
