"""Turn a history back into the shell script that rebuilds the artefact."""

from __future__ import annotations

import re
import shlex
from typing import Any

from sslbd_cli.artefacts.history import History, line_numbers, maker, needed
from sslbd_cli.words import one_line

#: Commands that write their artefact even if they end with exit status 3 (the result is in doubt).
DOUBTFUL = ("badencoder", "detect")


def command_line(entry: dict[str, Any]) -> str:
    """Return a history entry as the command that it records, without its files."""
    words = ["sslbd", str(entry.get("command"))]
    for name, value in entry.get("args", {}).items():
        if name.startswith("@"):
            words.append(str(value))
        elif value is True:
            words.append(name)
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [name, str(item)]
    return one_line(shlex.join(words), "?")


def script(history: History, kind: str) -> str:
    """Return a script of all commands that led to an artefact, which makes it as one file of `kind`.

    Files on the main line are numbered; those of side inputs are named by their digests.
    """
    lines = ["#!/bin/sh", "# Rebuilds the artefact by the commands in its history.", "set -eu"]
    if not history:
        return "\n".join([*lines, "# This artefact has no history: it was not made by sslbd commands.", ""])
    files = _files(history, kind)
    written_names = set[str]()
    for at in needed(history):
        name, made_kind = files[at]
        if name not in written_names:  # equal files may have been made in two ways
            lines += _step(history, at, name, made_kind, files)
        written_names.add(name)
    return "\n".join([*lines, ""])


def _files(history: History, kind: str) -> dict[int, tuple[str, str]]:
    """Return entry -> name and kind of the file that it makes."""
    rows = dict[int, dict[str, Any]]()
    for at in needed(history):
        rows |= {number: row for row in history[at]["inputs"] if (number := maker(history, at, row)) is not None}
    side = {at: (_named(row), str(row.get("kind"))) for at, row in rows.items()}
    line = line_numbers(history)
    kinds = [*(str(rows[at].get("kind")) for at in line[:-1]), kind]
    names = [*(f"rebuilt.{number}" for number in range(1, len(line))), "rebuilt"]
    main = {at: (name + _suffix(made), made) for at, name, made in zip(line, names, kinds, strict=True)}
    return side | main


def _step(history: History, at: int, target: str, kind: str, files: dict[int, tuple[str, str]]) -> list[str]:
    """Return the lines of one command, after comments on files that no command here makes."""
    entry, lines = history[at], []
    line = command_line(entry)
    if "device" in entry:  # bytes are equal only on devices of one kind
        line += one_line(f" --device {shlex.quote(str(entry['device']))}", "?")
    for source in entry["inputs"]:
        made_by = maker(history, at, source)
        if source.get("kind") == "file":
            name = str(source.get("file"))
            lines.append(one_line(f"# needs {name} with sha256 {source.get('sha256')}", "?"))
        elif made_by is None:
            name = _named(source)
            digest = f"content digest {source.get('sha256')} (see sslbd info --digest)"
            lines.append(one_line(f"# needs {name} with {digest}", "?"))
        else:
            name = files[made_by][0]
        option = "" if source.get("option") == "INPUT" else f" {shlex.quote(str(source.get('option')))}"
        line += one_line(f"{option} {shlex.quote(name)}", "?")
    doubt = " || [ $? -eq 3 ]" if entry["command"] in DOUBTFUL else ""
    return [*lines, f"{line} {'--save-guard' if kind == 'guard' else '-o'} {target}{doubt}"]


def _named(source: dict[str, Any]) -> str:
    """Return the name of a file that is no step of the main line."""
    return f"input-{re.sub('[^0-9a-f]', '', str(source.get('sha256')))[:12]}{_suffix(str(source.get('kind')))}"


def _suffix(kind: str) -> str:
    return ".safetensors" if kind in ("encoder", "guard") else ".h5"
