"""Find the files of a dataset in several files: a folder, a pattern, a list, or an address on the Hugging Face hub."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslbd_cli.artefacts.files import read_text
from sslbd_cli.errors import InputError
from sslbd_cli.words import one_line

MOST = 100_000  # files of one dataset
LIST_LIMIT = 16 << 20  # bytes of a list of shards
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """Hold one file of a dataset: its name for messages and digests, and its place."""

    name: str
    path: Path


def find_shards(source: str, suffixes: tuple[str, ...], say: Callable[[str], None]) -> list[Shard]:
    """Return the files that a source means, in its order.

    source: one file; a folder of files with these suffixes; a pattern such as train-{000..012}.tar or train-*.tar; a
    .txt list with one file or pattern per line; or hf://datasets/OWNER/NAME[@REVISION]/PATTERN. Raises InputError if
    there is none.
    """
    if source.startswith("hf:"):
        return _fetched(source, suffixes, say)
    if source.endswith(".txt"):
        lines = [line.strip() for line in read_text(source, LIST_LIMIT).splitlines() if line.strip()]
        return _some([shard for line in lines for shard in _local(str(Path(source).parent / line), suffixes)], source)
    return _some(_local(source, suffixes), source)


def _some(shards: list[Shard], source: str) -> list[Shard]:
    if not shards:
        raise InputError(f"there is no file of this kind in {one_line(source, '?')}")
    return shards


def _local(text: str, suffixes: tuple[str, ...]) -> list[Shard]:
    if Path(text).is_dir():
        return [Shard(path.name, path) for path in sorted(Path(text).iterdir()) if path.name.endswith(suffixes)]
    if Path(text).exists():
        return [Shard(Path(text).name, Path(text))]
    names = expand(text)
    places = [place for name in names for place in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]  # noqa: PTH207
    if absent := [place for place in places if not Path(place).is_file()]:
        raise InputError(
            f"{one_line(absent[0], '?')}: no such file" + (f" (and {len(absent) - 1} more)" * (len(absent) > 1))
        )
    return [Shard(Path(place).name, Path(place)) for place in places]


def expand(text: str) -> list[str]:
    """Expand braces as a shell does: {000..012} counts with leading zeros, {a,b} lists.

    Raises InputError if there are more than MOST results.
    """
    parts = _BRACES.split(text)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    count = 1
    for each in choices:
        count *= len(each)
    if count > MOST:
        raise InputError(f"{one_line(text[:80], '?')}: means {count} files, more than {MOST}")
    return ["".join(pieces) for pieces in itertools.product(*choices)]


def _choices(inner: str) -> list[str]:
    match = _RANGE.fullmatch(inner)
    if not match:
        return inner.split(",")
    low, high = int(match[1]), int(match[2])
    if abs(high - low) >= MOST:
        raise InputError(f"{{{inner}}}: means more than {MOST} files")
    step = 1 if high >= low else -1
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    return [f"{number:0{width}d}" for number in range(low, high + step, step)]


def _fetched(address: str, suffixes: tuple[str, ...], say: Callable[[str], None]) -> list[Shard]:
    from sslbd_cli.convert import hub

    downloads = hub.fetch_files(address, expand, suffixes, say)
    return [Shard(name, Path(path)) for name, path in downloads]
