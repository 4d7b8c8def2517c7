"""JSON of which equal values have equal text."""

import json
from typing import Any


def canonical(value: Any) -> str:
    """Serialise as canonical JSON: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
