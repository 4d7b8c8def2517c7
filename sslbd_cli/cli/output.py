"""What a measuring command prints: a table on a terminal, `key<TAB>value` in a pipe, JSON lines with --json.

Strings may come from files that others have written. They never reach the terminal with control characters, and never
break a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sslbd_cli.artefacts.results import Estimate
from sslbd_cli.errors import InputError
from sslbd_cli.words import finite, number, one_line

if TYPE_CHECKING:
    from rich.table import Table

#: Human names of keys that are not simply the key with spaces.
LABELS = {
    "answered_clean": "answered so, clean images",
    "answered_triggered": "answered so, triggered images",
    "asr": "ASR",
    "asr_all": "ASR, all classes",
    "auroc": "AUROC",
    "arch": "architecture",
    "dim": "embedding width",
    "fp_clean": "false positives, clean",
    "fp_triggered": "false positives, triggered",
    "n_aux": "auxiliary images",
    "n_judged": "images judged",
    "n_labelled": "labelled images",
    "n_test": "test images",
    "n_train": "training images",
    "nfp": "NFP",
    "sha256": "SHA-256",
    "tpr_at_fpr": "TPR at FPR",
}
MISSING = "–"
GAP, EDGES = 3, 2  # characters between a table's columns, and at its two sides


def print_results(results: dict[str, Any], *, json_lines: bool) -> None:
    """Print results on standard output. {"rows": [...]} gives one JSON object per row; anything else gives one object.

    NaN and infinity become null (JSON) or an empty value (pipe). Raises InputError if standard output is full.
    """
    if json_lines:
        text = "".join(json_line(row) + "\n" for row in json_rows(results))
    elif sys.stdout.isatty():
        text = _render(results)
    else:
        text = "".join(f"{key}\t{plain(value)}\n" for key, value in flatten(results))
    write_text(text)


def write_text(text: str) -> None:
    """Write text to standard output and flush it. Raises InputError if this fails, for example on a full disk."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # the interpreter flushes once more at its end, and this must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise InputError(f"cannot write standard output: {error.strerror or error}") from None


# --- for machines -------------------------------------------------------------------------------------------------


def json_rows(results: dict[str, Any]) -> list[Any]:
    """Return the content of each JSON line: the rows if there is nothing else, or the whole results."""
    rows = results.get("rows")
    return rows if isinstance(rows, list) and len(results) == 1 else [results]


def json_line(value: Any) -> str:
    """Serialise on one line, with keys in the given order, and null for values that JSON lacks."""
    return json.dumps(finite(value), ensure_ascii=True, allow_nan=False)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each scalar with its path: nested keys and list positions (from 0), joined by dots."""
    if not isinstance(value, (dict, list, tuple)):
        yield prefix, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from flatten(inner, f"{prefix}.{one_line(key)}" if prefix else one_line(key))


def plain(value: Any) -> str:
    """Return a scalar as text in full precision, on one line: empty for None, `true` and `false` for booleans."""
    value = finite(value)
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else one_line(value)


# --- for people ---------------------------------------------------------------------------------------------------


def label(key: object) -> str:
    """Return a key's human name."""
    return LABELS.get(str(key), one_line(key).replace("_", " "))


def is_interval(value: Any) -> bool:
    """Return whether a value is an estimate with an interval: value, low, high and optional sd, n and seeds."""
    needed = {"value", "low", "high"}
    return isinstance(value, dict) and needed <= set(value) <= needed | {"sd", "n", "seeds"}


def cell(value: Any) -> str:
    """Return any value as text for a person: 'x [low, high]' for an interval, a dash for a missing value."""
    value = finite(value)
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, Estimate) or is_interval(value):
        return _interval(value if isinstance(value, Estimate) else Estimate.of(value))
    if isinstance(value, dict):
        return ", ".join(f"{label(key)} {cell(inner)}" for key, inner in value.items()) or MISSING
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or MISSING
    return one_line(value)


def _interval(estimate: Estimate) -> str:
    text = f"{cell(estimate.value)} [{cell(estimate.low)}, {cell(estimate.high)}]"
    if estimate.sd is not None:
        text += f" sd {cell(estimate.sd)} over {cell(estimate.seeds)} seeds"
    return text


def is_table(value: Any) -> bool:
    """Return whether a value is the rows of a table: a list of dicts."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def lines(results: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield label and cell of everything except tables. A group (such as a baseline) gives one line per member."""
    for key, value in results.items():
        name = f"{prefix}{label(key)}"
        if isinstance(value, dict) and value and not is_interval(value):
            yield from lines(value, f"{name}: ")
        elif not is_table(value):
            yield name, cell(value)


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, column keys and cells of each list of dicts in the results.

    If rows have a group of estimates (such as a baseline), it becomes a table of its own with the same first column.
    """
    for key, value in results.items():
        if is_table(value):
            columns = list(dict.fromkeys(name for row in value for name in row))
            groups = [name for name in columns[1:] if is_group([row.get(name) for row in value])]
            columns = [name for name in columns if name not in groups]
            yield label(key), columns, [[cell(row.get(name)) for name in columns] for row in value]
            for name in groups:
                rows = [{columns[0]: row.get(columns[0])} | (row.get(name) or {}) for row in value]
                for title, members, cells in tables({name: rows}):
                    yield f"{label(key)}: {title}", members, cells


def is_group(values: list[Any]) -> bool:
    """Return whether a column holds groups (or None), at least one of them with an estimate."""
    groups = [value for value in values if value is not None]
    return all(isinstance(value, dict) for value in groups) and any(is_interval(v) for g in groups for v in g.values())


def _render(results: dict[str, Any]) -> str:
    """Draw the results as tables for this terminal. NO_COLOR turns colours off."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    with console.capture() as capture:
        rows = list(lines(results))
        if rows:
            console.print(_grid(["", ""], [list(row) for row in rows]))
        for title, columns, cells in tables(results):
            title = title if len(results) > 1 else ""
            widths = _widths(columns, cells)
            for part in _parts(widths, console.width - EDGES):
                fits = sum(widths[at] + GAP for at in part) - GAP <= console.width - EDGES
                part_cells = [[row[at] for at in part] for row in cells]
                heads = [label(columns[at]) for at in part]
                console.print(_grid(heads, part_cells, title, [widths[at] for at in part] if fits else None))
                title = ""
    return capture.get()


def _widths(columns: list[str], rows: list[list[str]]) -> list[int]:
    """Return the width of each column: cells stay on one line, heads break between words."""
    from rich.cells import cell_len

    words = [label(name).split() + [row[at] for row in rows] for at, name in enumerate(columns)]
    return [max(map(cell_len, column), default=0) for column in words]


def _parts(widths: list[int], room: int) -> list[list[int]]:
    """Split columns into tables that fit into the room. Each table begins with the first column."""
    parts = [[0]] if widths else []
    for at in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[other] + GAP for other in parts[-1]) + widths[at] > room:
            parts.append([0])
        parts[-1].append(at)
    return parts


def _grid(heads: list[str], rows: list[list[str]], title: str = "", widths: list[int] | None = None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=any(heads), pad_edge=False)
    if title:
        table.title, table.title_justify, table.title_style = Text(title), "left", "bold"
    for at, head in enumerate(heads):
        least = widths[at] if widths else None
        table.add_column(Text(head), style="bold" if at == 0 else "", overflow="fold", width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
