"""Find the files of a checkpoint: the file itself, the weights in a folder, or all shards of a sharded checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

INDEX_LIMIT = 64 << 20  # bytes of an index
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
#: Patterns of the weights in a folder, the first that matches anything.
_WEIGHTS = ("*.safetensors.index.json", "model.safetensors", "*.safetensors", "*.bin.index.json", "pytorch_model.bin",
            "*.bin", "*.pth", "*.pt", "*.ckpt")  # fmt: skip


@dataclass(frozen=True)
class ShardFiles:
    """Hold the paths of a checkpoint's files, and the names of tensors that its index promises in each."""

    paths: list[str]
    promised: dict[str, set[str]] = field(default_factory=dict)


def find(path: str) -> ShardFiles:
    """Return the files of a checkpoint: a file, a folder, the index of shards, or one shard beside the others.

    Raises InputError if a folder holds no weights or several, if an index is damaged, or if a shard is missing.
    """
    if path == "-":
        return ShardFiles([path])
    place = _in_folder(Path(path)) if Path(path).is_dir() else Path(path)
    if place.name.endswith(".index.json"):
        return _of_index(place)
    if shard := _SHARD.fullmatch(place.name):
        return _of_shard(place, shard)
    return ShardFiles([str(place) if Path(path).is_dir() else path])


def _in_folder(folder: Path) -> Path:
    for pattern in _WEIGHTS:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        shards = [match for path in files if (match := _SHARD.fullmatch(path.name))]
        if len({(match[1], match[3]) for match in shards}) == 1 and len(shards) == len(files):
            return files[0]
        if len(files) > 1:
            names = ", ".join(ascii(path.name)[1:-1] for path in files[:5])
            raise InputError(f"{folder}: is a directory of {len(files)} checkpoints ({names}); name one of them")
        if files:
            return files[0]
    raise InputError(f"{folder}: is a directory without a checkpoint in it; name a file")


def _of_index(index: Path) -> ShardFiles:
    try:
        if index.stat().st_size > INDEX_LIMIT:
            raise ValueError("too large")
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        promised: dict[str, set[str]] = {}
        for name, shard in places.items():
            promised.setdefault(shard, set()).add(name)
        if not promised or any(Path(shard).name != shard for shard in promised):
            raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index}: is no index of a sharded checkpoint: {reason(error)}") from None
    _need(index.parent, promised, str(index))
    paths = {str(index.parent / shard): names for shard, names in sorted(promised.items())}
    return ShardFiles(list(paths), paths)


def _of_shard(path: Path, shard: re.Match[str]) -> ShardFiles:
    count = int(shard[3])
    if not 1 <= count <= 1000:
        return ShardFiles([str(path)])
    names = [f"{shard[1]}-{number:05}-of-{shard[3]}{shard[4]}" for number in range(1, count + 1)]
    if path.exists():
        _need(path.parent, names, str(path))
    return ShardFiles([str(path.parent / name) for name in names])


def _need(folder: Path, shards: Iterable[str], label: str) -> None:
    every = sorted(shards)
    missing = [ascii(name)[1:-1] for name in every if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{label}: {len(missing)} of its {len(every)} shards are missing ({', '.join(missing[:3])}{more}); "
            "put them into the same folder"
        )
