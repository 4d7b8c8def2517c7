"""Say what a folder or an archive holds besides the images that are read: nothing vanishes in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from sslbd_cli.artefacts.pictures import SUFFIXES
from sslbd_cli.words import first_names

#: What usually lies beside images and is no image.
COMPANIONS = frozenset((
    ".cfg", ".csv", ".db", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log", ".mat", ".md", ".md5", ".npy", ".npz",
    ".pbtxt", ".pdf", ".pkl", ".py", ".rst", ".sh", ".sha256", ".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml",
))  # fmt: skip
NAMES = frozenset(("readme", "license", "licence", "makefile", "changelog", "copying", "version"))


def is_image(name: str) -> bool:
    """Return whether a file's name ends like that of an image that can be read."""
    return name.lower().endswith(SUFFIXES)


def doubts(others: Iterable[str], lost: int, stray: Sequence[str]) -> tuple[str, ...]:
    """Return one warning for each kind of what is left out.

    others: names of files that are no images by their names. lost: the number of links to nothing, and of devices.
    stray: images beside the folders.
    """
    said = []
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others if not _is_companion(name))
    if suffixes:
        kinds = first_names([f"{count} {suffix}" for suffix, count in suffixes.most_common()], 5)
        said.append(f"left out {_many(suffixes.total(), 'file')} of other suffixes than images that are read: {kinds}")
    if lost:
        said.append(f"left out {_many(lost, 'link')} to nothing in the source, pipes and devices counted as such")
    if stray:
        said.append(f"left out {_many(len(stray), 'image')} beside the folders: {first_names(stray, 3)}")
    return tuple(said)


def _is_companion(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in COMPANIONS or path.stem.lower() in NAMES


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
