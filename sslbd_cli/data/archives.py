"""Read images inside zip and tar archives in place. Nothing is extracted; links and devices are left out."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sslbd_cli.artefacts.files import FILE_LIMIT, open_regular, read_file, refuse_large
from sslbd_cli.artefacts.pictures import SUFFIXES
from sslbd_cli.data.decode import unpacking_limit
from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.core.watch import Watch

Parts = tuple[str, ...]
Reader = Callable[[], bytes]
UNPACKERS: dict[bytes, Callable[[Any], Any]] = {b"\xfd7zXZ\0": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}


def image_parts(name: str) -> Parts | None:
    """Split the path of an image. Return None if it is hidden, leaves the archive, or has no image suffix."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not parts or not parts[-1].lower().endswith(SUFFIXES):
        return None
    return None if any(part.startswith(".") or part == "__MACOSX" for part in parts) else parts


def list_images(path: Path, keep: Callable[[Parts], bool], watch: Watch) -> dict[Parts, Reader]:
    """List the images of an archive. The first bytes tell its kind, not its name.

    A compressed tar cannot seek. It is read once, and the bytes of the images that `keep` accepts stay in memory.
    Raises InputError if the archive is truncated or unpacks to absurd sizes. Errors of the libraries pass through.
    """
    if path.exists() and not path.is_file():
        raise InputError("neither a folder nor a regular file; give one of them")
    with open_regular(path) as file:
        magic = file.read(6)
        file.seek(0)
        if not magic:
            raise InputError("is empty")
        if magic.startswith((b"PK\3\4", b"PK\5\6")):
            return dict(_list_zip(path))
        unpack = next((opener for start, opener in UNPACKERS.items() if magic.startswith(start)), None)
        with watch(path.stat().st_size, "bytes", f"reading {path.name}") as ticker:
            readers, before = {}, 0
            for parts, reader in _list_tar(path, file, unpack, keep):
                readers[parts] = reader
                ticker.advance(file.tell() - before)
                before = file.tell()
        return readers


def _list_zip(path: Path) -> Iterator[tuple[Parts, Reader]]:
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    packed, claimed = path.stat().st_size, sum(member.file_size for member in members)
    if claimed > unpacking_limit(packed):
        raise InputError(f"claims to unpack {packed} bytes to {claimed}: taken for a decompression bomb")
    for member in members:
        parts = image_parts(member.filename)
        mode = member.external_attr >> 16
        if parts is None or member.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            continue
        if member.flag_bits & 1:
            raise InputError("is encrypted; unpack it first")
        too_large = member.file_size > FILE_LIMIT
        yield (
            parts,
            functools.partial(refuse_large, member.file_size) if too_large else functools.partial(archive.read, member),
        )


def _list_tar(
    path: Path, file: BinaryIO, unpack: Callable[[Any], Any] | None, keep: Callable[[Parts], bool]
) -> Iterator[tuple[Parts, Reader]]:
    stream = _Bounded(unpack(file) if unpack else file, unpacking_limit(path.stat().st_size))
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            parts = image_parts(member.name)
            if parts is None or not member.isreg() or member.sparse is not None:
                continue
            if unpack is None:
                yield parts, functools.partial(read_file, path, member.offset_data, member.size)
            elif member.size > FILE_LIMIT or not keep(parts):
                yield parts, functools.partial(refuse_large, member.size)
            else:
                stream.seek(member.offset_data)
                yield parts, functools.partial(bytes, stream.read(member.size))
    # tarfile stops silently at a damaged header and at a missing end; only a block of zeros is a real end
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise InputError("damaged or truncated tar archive: its end is missing")
    while stream.read(1 << 20):
        pass  # the checksum of a compressed stream is at its end


class _Bounded:
    """A stream that refuses to unpack to absurd sizes and remembers its last read."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.limit, self.last = file, limit, b""

    def tell(self) -> int:
        return int(self.file.tell())

    def seek(self, offset: int) -> int:
        self._check(offset)
        return int(self.file.seek(offset))

    def read(self, count: int) -> bytes:
        self._check(self.tell() + count)
        self.last = self.file.read(count)
        return self.last

    def _check(self, offset: int) -> None:
        if offset > self.limit + (1 << 20):
            raise InputError(f"unpacks to more than {self.limit} bytes: damaged, or a decompression bomb")
