"""Tables of text with a title and a word on what they say, written as Markdown or as a web page."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sslbd_cli.cli.output import one_line
from sslbd_cli.report import tables, webpage
from sslbd_cli.report.webpage import safe

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
class Block:
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


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return tables as Markdown, each under a heading of the second rank."""
    return "\n".join(map(_written, blocks))


def _written(block: Block) -> str:
    rows = [[c if at in block.numeric else tables.text(c) for at, c in enumerate(row)] for row in block.rows]
    for at, column in block.strong:
        rows[at][column] = f"**{rows[at][column]}**"
    drawn = tables.table(list(map(tables.text, block.heads)), rows)
    return f"## {block.title}\n\n{block.meaning}\n\n{drawn}\n"


def to_page(title: str, subject: str, blocks: Sequence[Block]) -> str:
    """Return tables as a web page that needs no network."""
    return webpage.frame(title, subject, map(_section, blocks))


def _section(block: Block) -> str:
    heads = "".join(f'<th scope="col">{safe(head)}</th>' for head in block.heads)
    rows = []
    for at, (name, *cells) in enumerate(block.rows):
        shown = [f"<b>{safe(c)}</b>" if (at, n) in block.strong else safe(c) for n, c in enumerate(cells, 1)]
        labelled = zip(block.heads[1:], shown, strict=True)
        body = "".join(f'<td data-label="{safe(head)}"><span>{cell}</span></td>' for head, cell in labelled)
        rows.append(f'<tr><th scope="row">{safe(name)}</th>{body}</tr>')
    drawn = webpage.table("headline matrix", heads, "".join(rows))
    return f"<section><h2>{safe(block.title)}</h2><p>{safe(block.meaning)}</p>{drawn}</section>"
