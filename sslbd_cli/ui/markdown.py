"""Markdown from strings that anyone may have written: escaped, on one line, in tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sslbd_cli.ui.report import one_line


def text(value: object) -> str:
    """Escape a value for running text: no mark of Markdown or HTML in it is obeyed, and it stays on its line."""
    return re.sub(r"([\\`*_{}\[\]()<>#|~&$:@]|(?<=[wW])\.)", r"\\\1", one_line(value)).strip()


def code(value: object) -> str:
    """Return a value for a code span, which ends at the first backtick."""
    return one_line(value).replace("`", "'").replace("|", "¦").strip()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
