"""Export datasets for other people's trainers: class folders of PNG, one .npz file, or WebDataset shards.

Every form keeps the pixels bit for bit, and `sslbd data` reads it back. Trainers that look for images and labels do not
meet the truth, which lies beside them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from sslbd_cli.artefacts import captions, outputs
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core.watch import Watch
from sslbd_cli.errors import InputError

CHUNK = 64  # images encoded together
SHARD = 10_000  # images of one shard at most
LONGEST_NAME = 200  # bytes of a class's folder
SAFE = " !#$&'()+,;=@[]{}~"  # characters of a folder's name besides letters, digits and _.-


def export(dataset: Dataset, target: str, path: str, watch: Watch) -> str:
    """Write a dataset as `folder`, `npz` or `webdataset`. Return how to read it again.

    Raises InputError if the place cannot be written, or a class name cannot be the name of a folder.
    """
    if target == "npz":
        _write_npz(dataset, path)
        return f"sslbd data npz {path}"
    if path == "-":
        raise InputError(f"--to {target} writes a folder; name a new one by -o")
    with outputs.new_folder(path) as folder:
        write = _write_folders if target == "folder" else _write_shards
        write(dataset, folder, watch)
        if dataset.truth is not None:
            (folder / "truth.csv").write_text(_truth_table(dataset), encoding="utf-8", newline="")
    if target == "webdataset":
        return f"sslbd data webdataset {path}"
    return f"sslbd data folder {path}, or in the same order sslbd data filelist {Path(path) / 'list.txt'}"


def changed_names(dataset: Dataset, target: str) -> dict[str, str]:
    """Return the class names that `export` cannot keep, each with what it writes instead. An npz file keeps all."""
    if dataset.labels is None or target == "npz":
        return {}
    write = _folder_name if target == "folder" else _line
    return {name: write(name) for name in dataset.classes if write(name) != name}


def _write_npz(dataset: Dataset, path: str) -> None:
    """Write x uint8 N,H,W,3, y int64 N, classes and captions (text), and the truth as truth_poisoned and so on."""
    arrays: dict[str, np.ndarray] = {"x": dataset.images.transpose(0, 2, 3, 1)}
    if dataset.labels is not None:
        arrays |= {"y": dataset.labels, "classes": np.array(dataset.classes)}
    if dataset.captions is not None:
        arrays["captions"] = np.array(captions.decode(dataset.captions))
    if dataset.truth is not None:
        arrays |= {f"truth_{name}": array for name, array in dataset.truth.arrays().items()}
    with outputs.atomic_output(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_folders(dataset: Dataset, folder: Path, watch: Watch) -> None:
    """Write CLASS/ROW.png, or ROW.png without labels, and list.txt of all images in the dataset's order."""
    names = [_folder_name(name) for name in dataset.classes] if dataset.labels is not None else []
    if len(set(map(str.casefold, names))) < len(names):
        raise InputError("two class names differ in nothing but case, and not every system tells their folders apart")
    for name in names:
        (folder / name).mkdir()
    lines, texts = [], None if dataset.captions is None else captions.decode(dataset.captions)
    for row, data in _encoded(dataset, watch):
        place, label = f"{_key(dataset, row)}.png", ""
        if dataset.labels is not None:
            number = int(dataset.labels[row])
            place, label = f"{names[number]}/{place}", f" {number}"
        (folder / place).write_bytes(data)
        caption = "" if texts is None else "\t" + " ".join(texts[row].split())
        lines.append(f"{place}{label}{caption}\n")
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    for name in names:
        with contextlib.suppress(OSError):  # a class without images has no folder, as ImageFolder wants it
            (folder / name).rmdir()


def _folder_name(name: str) -> str:
    """Return a class name as a folder's: percent signs stand for what no folder's name may hold."""
    safe = quote(name, safe=SAFE + "".join(c for c in name if not c.isascii() and c.isprintable()))
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    if not safe or len(safe.encode()) > LONGEST_NAME:
        raise InputError(f"the class name '{name[:40]}' cannot be the name of a folder; use --to npz or webdataset")
    return safe


def _write_shards(dataset: Dataset, folder: Path, watch: Watch) -> None:
    """Write shards 000000.tar ... of ROW.png, ROW.cls and ROW.txt (the caption), and classnames.txt."""
    texts = None if dataset.captions is None else captions.decode(dataset.captions)
    with contextlib.ExitStack() as stack:
        for row, data in _encoded(dataset, watch):
            if row % SHARD == 0:
                stack.close()
                shard = stack.enter_context(
                    tarfile.open(folder / f"{row // SHARD:06d}.tar", "w", format=tarfile.USTAR_FORMAT)
                )
            key = _key(dataset, row)
            _add(shard, f"{key}.png", data)
            if dataset.labels is not None:
                _add(shard, f"{key}.cls", str(int(dataset.labels[row])).encode())
            if texts is not None:
                _add(shard, f"{key}.txt", texts[row].encode())
    if dataset.labels is not None:
        names = "".join(f"{_line(name)}\n" for name in dataset.classes)
        (folder / "classnames.txt").write_text(names, encoding="utf-8", newline="\n")


def _line(name: str) -> str:
    """Return a class name on one line."""
    return " ".join(name.split())


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without date and owner, so that equal datasets give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def _key(dataset: Dataset, row: int) -> str:
    return f"{row:0{len(str(len(dataset.images) - 1))}d}"


def _encoded(dataset: Dataset, watch: Watch) -> Iterator[tuple[int, bytes]]:
    """Yield each row and its image as a PNG, in order, encoded by several threads."""

    def encode(row: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(dataset.images[row].transpose(1, 2, 0))).save(out, "PNG", compress_level=1)
        return out.getvalue()

    count = len(dataset.images)
    with ThreadPoolExecutor() as pool, watch(count, "images", "encoding") as ticker:
        for start in range(0, count, CHUNK):
            rows = range(start, min(start + CHUNK, count))
            yield from zip(rows, pool.map(encode, rows), strict=True)
            ticker.advance(len(rows))


def _truth_table(dataset: Dataset) -> str:
    """Return one line per image: its name and what the poisoner did, in the columns of Truth."""
    assert dataset.truth is not None
    truth = dataset.truth.arrays()
    box = truth.pop("box")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *truth, "x", "y", "width", "height"])
    for row in range(len(dataset.images)):
        writer.writerow([_key(dataset, row), *(int(array[row]) for array in truth.values()), *map(int, box[row])])
    return out.getvalue()
