"""Tables of text with a title and a word on what they say, written as Markdown or as a web page."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sslbd_cli.report import webpage
from sslbd_cli.words import one_line

# --- Markdown from strings that anyone may have written: escaped, on one line, in tables


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


@dataclass(frozen=True)
class Table:
    """One table. title and meaning are ours; heads and cells may hold what others wrote, and are escaped.

    rows: as many cells each as heads, the first names the row; numeric: columns of numbers composed here, written as
    they are in Markdown too; strong: row and column of bold cells.
    """

    title: str
    meaning: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int] = ()
    strong: Collection[tuple[int, int]] = ()


def to_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, each under a heading of the second rank."""
    return "\n".join(map(_written, tables))


def _written(each: Table) -> str:
    rows = [[c if at in each.numeric else text(c) for at, c in enumerate(row)] for row in each.rows]
    for at, column in each.strong:
        rows[at][column] = f"**{rows[at][column]}**"
    body = table(list(map(text, each.heads)), rows)
    return f"## {each.title}\n\n{each.meaning}\n\n{body}\n"


def to_page(title: str, subject: str, tables: Sequence[Table]) -> str:
    """Return tables as a web page that needs no network."""
    return webpage.render("tables.html", title, subject, tables=tables)
