"""Turn a history back into the shell script that rebuilds the artefact."""

from __future__ import annotations

import re
import shlex
from typing import Any

from sslbd_cli.artefacts.kinds import History
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
    """Return a script of all commands: side inputs first, named by digest, and one file of `kind` at the end."""
    lines = ["#!/bin/sh", "# Rebuilds the artefact by the commands in its history.", "set -eu"]
    finished_names: set[str] = set()
    if not history:
        return "\n".join([*lines, "# This artefact has no history: it was not made by sslbd commands.", ""])
    _rebuild(history, "rebuilt", lines, finished_names, kind)
    return "\n".join([*lines, ""])


def _rebuild(history: History, goal: str, lines: list[str], finished_names: set[str], kind: str) -> None:
    """Append the commands of a history. Its last artefact is named `goal`."""
    if goal in finished_names:
        return
    finished_names.add(goal)
    before = ""
    for number, (entry, made_kind) in enumerate(zip(history, _kinds(history, kind), strict=True)):
        last = number == len(history) - 1
        target = goal if last else f"{goal}.{number + 1}"
        line = command_line(entry)
        if "device" in entry:  # bytes are equal only on devices of one kind
            line += one_line(f" --device {shlex.quote(str(entry['device']))}", "?")
        for source in entry.get("inputs", []):
            line += _input_words(source, before, lines, finished_names)
        command = str(entry.get("command"))
        doubt = " || [ $? -eq 3 ]" if command in DOUBTFUL else ""
        before = f"{target}{_suffix(made_kind)}"
        lines.append(f"{line} {'--save-guard' if made_kind == 'guard' else '-o'} {before}{doubt}")


def _kinds(history: History, kind: str) -> list[str]:
    """Return the kind that each command of a history made: the next command's INPUT, or the artefact itself."""
    worked_on = (
        next((str(source.get("kind")) for source in entry.get("inputs", []) if source.get("option") == "INPUT"), "")
        for entry in history[1:]
    )
    return [*worked_on, kind]


def _input_words(source: dict[str, Any], before: str, lines: list[str], finished_names: set[str]) -> str:
    option = str(source.get("option"))
    if source.get("kind") == "file":
        name = str(source.get("file"))
        lines.append(one_line(f"# needs {name} with sha256 {source.get('sha256')}", "?"))
    elif option == "INPUT" and before:
        name = before
    else:
        stem = f"input-{re.sub('[^0-9a-f]', '', str(source.get('sha256')))[:12]}"
        history = tuple(source.get("history", []))
        if history:
            _rebuild(history, stem, lines, finished_names, str(source.get("kind")))
        name = stem + _suffix(str(source.get("kind")))
        if not history:
            digest = f"content digest {source.get('sha256')} (see sslbd info --digest)"
            lines.append(one_line(f"# needs {name} with {digest}", "?"))
    if option == "INPUT":
        return f" {shlex.quote(name)}"
    return one_line(f" {shlex.quote(option)} {shlex.quote(name)}", "?")


def _suffix(kind: str) -> str:
    return ".safetensors" if kind in ("encoder", "guard") else ".h5"
