"""Histories: the commands that led to an artefact. Each command stands once, however many inputs it led to.

A history is a tuple of entries. An entry follows those that made its inputs, and the last one made the artefact. A row
of an entry's inputs names by `made_by` the entry that made it, counted from 0; null means that nobody knows. Without
`made_by`, INPUT was made by the entry before, and the origin of any other input is unknown.
"""

from __future__ import annotations

from typing import Any

from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.errors import InputError

History = tuple[dict[str, Any], ...]
MOST = 4096  # commands of a history
MOST_BYTES = 8 << 20  # of a history's text


def maker(history: History, at: int, row: dict[str, Any]) -> int | None:
    """Return the number of the entry that made an input of entry `at`; None if it is unknown."""
    before = at - 1 if at and row.get("option") == "INPUT" and row.get("kind") != "file" else None
    number: int | None = row.get("made_by", before)
    return number


def main_line(history: History, last: int | None = None) -> History:
    """Return the commands that worked on one artefact after another, up to entry `last` (default: the last entry)."""
    return tuple(history[at] for at in line_numbers(history, last))


def line_numbers(history: History, last: int | None = None) -> list[int]:
    """Return the numbers of the entries of `main_line`."""
    at = len(history) - 1 if last is None else last
    line = []
    while at >= 0:
        line.append(at)
        before = [maker(history, at, row) for row in history[at]["inputs"] if row.get("option") == "INPUT"]
        at = -1 if not before or before[0] is None else before[0]
    return line[::-1]


def needed(history: History) -> list[int]:
    """Return the numbers of the entries that led to the last one, and its own, ascending."""
    found, open_ones = set[int](), [len(history) - 1] if history else []
    while open_ones:
        at = open_ones.pop()
        if at not in found:
            found.add(at)
            makers = (maker(history, at, row) for row in history[at]["inputs"])
            open_ones += [number for number in makers if number is not None]
    return sorted(found)


class Lineage:
    """The histories of several inputs in one, each entry once."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}
        self._bytes = 0

    def add(self, history: Any) -> int | None:
        """Add a history and return the place of its last entry; None if it has none.

        An input's own commands may also stand in its row, as `history`, as in files of format 1. Raises InputError if
        the whole is too long to be recorded.
        """
        places: list[int] = []
        for at, entry in enumerate(history):
            rows = []
            for row in entry["inputs"]:
                made_by = maker(history, at, row)
                place = self.add(row["history"]) if row.get("history") else None if made_by is None else places[made_by]
                rows.append({k: v for k, v in row.items() if k != "history"} | {"made_by": place})
            places.append(self._put(entry, rows))
        return places[-1] if places else None

    def _put(self, entry: dict[str, Any], rows: list[dict[str, Any]]) -> int:
        content = canonical(entry | {"inputs": rows})
        if content not in self._places:
            self._places[content] = len(self._entries)
            self._entries.append(entry | {"inputs": self.brief(rows)})
            self._bytes += len(content)
            if len(self._entries) >= MOST or self._bytes > MOST_BYTES:  # one entry follows
                raise InputError(
                    f"its history is too long: at most {MOST - 1} commands and {MOST_BYTES >> 20} MB of text"
                )
        return self._places[content]

    def brief(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the input rows of the next entry without each `made_by` that goes without saying."""
        bare = [{k: v for k, v in row.items() if k != "made_by"} for row in rows]
        history = (*self._entries, {})
        return [
            short if maker(history, len(self._entries), short) == row.get("made_by") else row
            for short, row in zip(bare, ({"made_by": None} | row for row in rows), strict=True)
        ]

    def followed_by(self, entry: dict[str, Any]) -> History:
        """Return the whole history that ends with an entry. `brief` has made its input rows."""
        return (*self._entries, entry)

    def up_to(self, last: int | None) -> History:
        """Return the history that ends with the entry at a place."""
        return () if last is None else tuple(self._entries[: last + 1])


def unfolded(history: list[dict[str, Any]]) -> History:
    """Return a history in which no input's row holds the commands that made it, as in files of format 1."""
    if not any("history" in row for entry in history for row in entry["inputs"]):
        return tuple(history)
    lineage = Lineage()
    return lineage.up_to(lineage.add(history))


def is_history(value: Any) -> bool:
    """Return whether a value is a list of history entries, which name only entries before them."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("command"), str)
        and isinstance(entry.get("args"), dict)
        and isinstance(entry.get("inputs"), list)
        and all(_is_source(row, at) for row in entry["inputs"])
        for at, entry in enumerate(value)
    )


def _is_source(row: Any, at: int) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("option", "kind", "sha256")):
        return False
    made_by = row.get("made_by")
    known = made_by is None or (isinstance(made_by, int) and not isinstance(made_by, bool) and 0 <= made_by < at)
    return known and is_history(row.get("history", []))
