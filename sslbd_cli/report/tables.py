"""Write tables of text, each with a title and its meaning, as Markdown or as a web page."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sslbd_cli.report import webpage
from sslbd_cli.words import one_line

# --- Markdown of strings that anyone may have written


def text(value: object) -> str:
    """Escape the marks of Markdown and HTML in a value and put it on one line, for running text."""
    return re.sub(r"([\\`*_{}\[\]()<>#|~&$:@]|(?<=[wW])\.)", r"\\\1", one_line(value)).strip()


def code(value: object) -> str:
    """Put a value on one line for a code span. A backtick would end the span, so it becomes an apostrophe."""
    return one_line(value).replace("`", "'").replace("|", "¦").strip()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@dataclass(frozen=True)
class Table:
    """One table. heads and rows may hold strings that anyone wrote, so they are escaped; title and meaning are not.

    rows: as many cells each as heads; the first cell names the row. numeric: columns that hold only numbers and need
    no escape in Markdown. strong: row and column of each bold cell.
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
