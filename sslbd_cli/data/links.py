"""Follow hard and symbolic links inside an archive, as the file system does in a folder. None leaves the archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sslbd_cli.errors import InputError

Parts = tuple[str, ...]
MOST_HOPS = 40  # links on the way to a file, as in Linux
MOST_COPIES = 20  # paths that links may give each file on average


@dataclass(frozen=True)
class Followed:
    """Hold the paths that links give to files (path -> the file's own path), and the links to nothing."""

    paths: dict[Parts, Parts]
    lost: tuple[Parts, ...]


def target_of(folder: Parts, text: str) -> Parts | None:
    """Return the path inside the archive that a link's text means, seen from a folder; None if it leads out of it."""
    if text.startswith("/") or not text:
        return None
    parts = list(folder)
    for part in text.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def follow(files: set[Parts], links: dict[Parts, Parts | None]) -> Followed:
    """Follow all links to files, and to folders with the files in them; links to folders inside these are left out.

    Raises InputError if the links multiply the files absurdly.
    """
    places = {name: _resolve(target, links) for name, target in links.items()}
    paths = {name: place for name, place in places.items() if place in files and name not in files}
    below = _below(files | paths.keys()) if links else {}
    copies = dict[Parts, Parts]()
    for name, place in places.items():
        for inner in below.get(place, []):
            if inner[: len(name)] != name:  # a link to a folder above itself
                copies[name + inner[len(place) :]] = paths.get(inner, inner)
        if len(copies) > MOST_COPIES * (len(files) + 1):
            raise InputError(f"its links give each file more than {MOST_COPIES} paths: taken for a bomb")
    lost = tuple(name for name, place in places.items() if place not in files and place not in below)
    return Followed({name: source for name, source in copies.items() if name not in files} | paths, lost)


def _below(files: set[Parts]) -> dict[Parts, list[Parts]]:
    """Return the files below each folder."""
    below: dict[Parts, list[Parts]] = {}
    for file in sorted(files):
        for folder in _folders(file):
            below.setdefault(folder, []).append(file)
    return below


def _folders(path: Parts) -> Iterator[Parts]:
    return (path[:end] for end in range(1, len(path)))


def _resolve(path: Parts | None, links: dict[Parts, Parts | None]) -> Parts:
    """Return where a path leads through links on its way; () if it leads nowhere."""
    for _ in range(MOST_HOPS):
        if path is None:
            return ()
        start = next((part for part in (*_folders(path), path) if part in links), None)
        if start is None:
            return path
        target = links[start]
        path = None if target is None else (*target, *path[len(start) :])
    return ()
