"""Bytes of artefacts: safetensors and HDF5 are read defensively and written reproducibly.

This module does not know what the arrays mean; kinds.py does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import safetensors
import safetensors.numpy

from sslbd_cli import signals
from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.artefacts.outputs import atomic_output, temporary_space
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MAGIC = 9  # bytes that tell what a file is
LEAF = 4 << 20  # bytes hashed per leaf of the content digest
HEADER_LIMIT = 64 << 20
SPARE = 2 << 30  # extra address space for reading a file's structure; the tuned allocator asks for 256 MB at a time
Arrays = dict[str, np.ndarray]
#: NumPy's name of a type, without its byte order -> safetensors' name, in the order in which safetensors stores them.
SAFETENSORS_TYPES = {"u8": "U64", "i8": "I64", "f8": "F64", "f4": "F32", "u4": "U32", "i4": "I32", "f2": "F16",
                     "u2": "U16", "i2": "I16", "i1": "I8", "u1": "U8", "b1": "BOOL"}  # fmt: skip


def digest(meta: dict[str, Any], arrays: Arrays) -> str:
    """Hash meta and arrays by SHA-256 over 4 MiB leaves, so that all cores share the work."""

    def leaf(at: int, view: memoryview) -> bytes:
        content = hashlib.sha256(view[at : at + LEAF]).digest()
        paging.note_use(LEAF)
        return content

    tree: dict[str, Any] = {"meta": meta, "arrays": {}}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, array in sorted(arrays.items()):
            view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            leaves = pool.map(partial(leaf, view=view), range(0, len(view), LEAF))
            shape = [array.dtype.str, list(array.shape), hashlib.sha256(b"".join(leaves)).hexdigest()]
            tree["arrays"][name] = shape
    return hashlib.sha256(canonical(tree).encode()).hexdigest()


# --- reading ------------------------------------------------------------------------------------------------------


def read_container(path: str) -> tuple[str, Arrays]:
    """Read a whole artefact file. Return its header text and its arrays (HDF5 arrays are mapped copy-on-write).

    `path` `-` is standard input. Raises InputError unless the file is one complete, well-formed container.
    """
    label = "standard input" if path == "-" else path

    def check(magic: bytes) -> None:
        if not magic:
            raise InputError(f"{label}: is empty{': the command before the pipe failed' if path == '-' else ''}")
        if magic[:8] != HDF5_MAGIC and not may_be_safetensors(magic):
            what = "not an sslbd artefact (neither safetensors nor HDF5)"
            raise InputError(f"{label}: {what}; see sslbd data and sslbd convert")

    with seekable(path, check) as file:
        magic = file.read(8)
        file.seek(0)
        return _read_hdf5(file, label) if magic == HDF5_MAGIC else _read_safetensors(file.read(), label)


def may_be_safetensors(magic: bytes) -> bool:
    """Return whether a file may be one of safetensors, by its first nine bytes."""
    return magic[8:9] == b"{" and 2 <= int.from_bytes(magic[:8], "little") <= HEADER_LIMIT


@contextlib.contextmanager
def seekable(path: str, check: Callable[[bytes], object] | None = None, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a file; copy a pipe into an unlinked temporary file first.

    check: gets the first nine bytes before the rest of a pipe is read, and raises InputError for what is not wanted.
    most: bytes of a pipe to read; None: all.
    Raises InputError for a device, because it may never end.
    """
    try:
        source = open(path, "rb") if path != "-" else os.fdopen(os.dup(0), "rb")  # noqa: SIM115
    except OSError as error:
        advice = "; give addresses on the hub to sslbd convert or sslbd detect" if path.startswith("hf:") else ""
        raise InputError(f"{'standard input' if path == '-' else path}: {error.strerror}{advice}") from None
    with source:
        if source.isatty():
            what = "standard input is" if path == "-" else f"{path}: is"
            raise InputError(f"{what} a terminal: name an input file or pipe one in")
        try:
            mode = os.fstat(source.fileno()).st_mode
            magic = source.read(MAGIC)
            if magic and not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
                raise InputError(f"{path}: is a device, neither a file nor a pipe")
            if check is not None:
                check(magic)
            if stat.S_ISREG(mode) and source.tell() == len(magic):
                source.seek(0)
                yield source
                return
            with tempfile.TemporaryFile() as spool:
                with temporary_space():
                    spool.write(magic)
                    if most is None:
                        shutil.copyfileobj(source, spool, 1 << 20)
                    else:
                        spool.write(source.read(max(most - len(magic), 0)))
                    spool.seek(0)
                yield spool
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None


def _read_safetensors(data: bytes, label: str) -> tuple[str, Arrays]:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {}).get("sslbd")
        arrays = safetensors.numpy.load(data) if isinstance(text, str) else {}
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError, RecursionError, TypeError) as error:
        raise InputError(f"{label}: damaged safetensors file: {reason(error)}") from None
    if not isinstance(text, str):
        raise InputError(f"{label}: safetensors without an sslbd header; import it with 'sslbd convert'")
    return text, arrays


def _read_hdf5(file: BinaryIO, label: str) -> tuple[str, Arrays]:
    """Read header and layout by h5py, then map the raw data at memory speed."""
    try:
        answer = json.loads(_confined(lambda: _layout(file), os.fstat(file.fileno()).st_size))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["text"], {name: _map(file, *place) for name, place in answer["layout"].items()}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{label}: damaged or foreign HDF5 file ({reason(error)}); see sslbd data") from None


def _layout(file: BinaryIO) -> dict[str, Any]:
    """Return the header text, and offset, type and shape of each dataset. Only contiguous plain data is accepted."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    layout: dict[str, tuple[int, str, tuple[int, ...]]] = {}
    with h5py.File(file, "r") as h5:
        text = h5.attrs.get("sslbd")
        if not isinstance(text, str):
            raise ValueError("it has no sslbd header")

        def visit(name: str, item: Any) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            if item.dtype.kind not in "iufb" or item.is_virtual or item.external or item.shape is None:
                raise ValueError(f"'{name}' is not plain numeric data")
            offset, length = item.id.get_offset(), math.prod(item.shape) * item.dtype.itemsize
            if length and (offset is None or offset + length > size):
                raise ValueError(f"'{name}' is not contiguous, or reaches past the end of the file")
            layout[name] = (offset or 0, item.dtype.str, item.shape)

        h5.visititems(visit)
    return {"text": text, "layout": layout}


def _map(file: BinaryIO, offset: int, dtype: str, shape: list[int]) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    return paging.mapped(file, dtype, shape, offset)


def _confined(work: Callable[[], dict[str, Any]], size: int, seconds: int = 3) -> str:
    """Run `work` in a child process with bounded time and memory. Return its result, or {"error": ...}, as JSON.

    The HDF5 library is not safe against malicious files: it can loop, crash or ask for absurd amounts of memory. So it
    never opens a foreign file in this process, and the child process returns only plain values.
    """
    if not hasattr(os, "fork"):
        return _attempt(work)
    answer, ask = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child calls only h5py, then _exit
        child = os.fork()
    if child == 0:
        try:
            _limit(seconds + size // (50 << 20))
            with os.fdopen(ask, "wb") as pipe:
                pipe.write(_attempt(work).encode())
        finally:
            os._exit(0)
    os.close(ask)
    try:
        with os.fdopen(answer, "rb") as pipe:
            return pipe.read().decode() or '{"error": "the HDF5 library crashed on it"}'
    finally:
        os.kill(child, signal.SIGKILL)  # the child is done, or we are interrupted
        os.waitpid(child, 0)


def _attempt(work: Callable[[], dict[str, Any]]) -> str:
    try:
        return json.dumps(work())
    except Exception as error:
        return json.dumps({"error": reason(error)})


def _limit(seconds: int) -> None:
    """Bound the CPU seconds, wall time (20 times as long, for slow disks) and memory of this process; reset signals."""
    for number in (*signals.ENDING, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    signal.alarm(20 * seconds)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_AS, _address_space() + SPARE)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _lower(limit: int, size: int) -> None:
    ceiling = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (size if ceiling == resource.RLIM_INFINITY else min(size, ceiling), ceiling))


def _address_space() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 1 << 46
    return pages * resource.getpagesize()


# --- writing ------------------------------------------------------------------------------------------------------


def write_safetensors(path: str, header: str, arrays: Arrays) -> None:
    """Write tensors with one metadata key. Two writes of the same content give equal bytes."""
    ordered = {k: np.asarray(v, order="C") for k, v in arrays.items()}
    with atomic_output(path) as file:
        dump_safetensors(file, ordered, {"sslbd": header})


def dump_safetensors(file: BinaryIO, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write the bytes that safetensors.numpy.save makes, tensor by tensor, without a copy of all of them in memory."""
    rows: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    kinds = {name: array.dtype.str.lstrip("<|=") for name, array in arrays.items()}
    ranks = list(SAFETENSORS_TYPES)
    order = sorted(arrays, key=lambda name: (ranks.index(kinds[name]), name.encode()))
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        kind = SAFETENSORS_TYPES[kinds[name]]
        rows[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(arrays[name].reshape(-1).view(np.uint8).data)


def write_hdf5(path: str, header: str, arrays: Arrays) -> None:
    """Write contiguous uncompressed datasets and one variable-length header attribute. Repeated writes are equal."""
    with atomic_output(path) as file, h5py.File(file, "w", libver=("v110", "v110"), track_order=False) as h5:
        h5.attrs["sslbd"] = header
        for name, array in sorted(arrays.items()):
            place = h5.create_dataset(name, array.shape, array.dtype, track_times=False)
            for part in paging.parts(array) if array.ndim else [()]:
                place[part] = array[part]
