"""Read files inside zip and tar archives in place. Nothing is extracted; links that lead elsewhere are left out."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sslbd_cli.artefacts.files import FILE_LIMIT, open_regular, read_file, refuse_large
from sslbd_cli.data.decode import unpacking_limit
from sslbd_cli.data.links import follow, target_of
from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.core.watch import Watch

Parts = tuple[str, ...]
Reader = Callable[[], bytes]
UNPACKERS: dict[bytes, Callable[[Any], Any]] = {b"\xfd7zXZ\0": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
LONGEST_TARGET = 4096  # bytes of the path that a link holds


@dataclass
class Contents:
    """Hold the files of an archive by their paths, and the paths that its links lead to (None: out of the archive).

    lost: the number of links, devices and the like that are left out.
    """

    files: dict[Parts, Reader] = field(default_factory=dict)
    links: dict[Parts, Parts | None] = field(default_factory=dict)
    lost: int = 0


def plain_parts(name: str) -> Parts | None:
    """Split a path. Return None if it is empty or climbs above its start."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    return None if not parts or ".." in parts else parts


def is_hidden(parts: Parts) -> bool:
    """Return whether a path is hidden, or made by a Mac beside the real one."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def list_files(path: Path, keep: Callable[[Parts], bool], watch: Watch) -> tuple[dict[Parts, Reader], int]:
    """List the files of an archive that are not hidden, and count the links and devices that are left out.

    The first bytes tell the archive's kind, not its name. A link to a file or folder of the archive is followed. A
    compressed tar cannot seek. It is read once, and the bytes of the files that `keep` accepts stay in memory; it is
    read again if links lead to others. Raises InputError if the archive is truncated or unpacks to absurd sizes. Errors
    of the libraries pass through.
    """
    if path.exists() and not path.is_file():
        raise InputError("neither a folder nor a regular file; give one of them")
    contents = _contents(path, keep, watch)
    followed = follow(set(contents.files), contents.links)
    wanted = {source for name, source in followed.paths.items() if contents.files[source] is _unread and keep(name)}
    if wanted:
        again = _contents(path, wanted.__contains__, watch).files
        contents.files |= {name: again[name] for name in wanted}
    files = contents.files | {name: contents.files[source] for name, source in followed.paths.items()}
    lost = contents.lost + sum(not is_hidden(name) for name in followed.lost)
    return {name: reader for name, reader in files.items() if not is_hidden(name)}, lost


def _contents(path: Path, keep: Callable[[Parts], bool], watch: Watch) -> Contents:
    with open_regular(path) as file:
        magic = file.read(6)
        file.seek(0)
        if not magic:
            raise InputError("is empty")
        if magic.startswith((b"PK\3\4", b"PK\5\6")):
            return _read_zip(path)
        unpack = next((opener for start, opener in UNPACKERS.items() if magic.startswith(start)), None)
        contents, before = Contents(), 0
        with watch(path.stat().st_size, "bytes", f"reading {path.name}") as ticker:
            for _ in _read_tar(path, file, unpack, keep, contents):
                ticker.advance(file.tell() - before)
                before = file.tell()
        return contents


def _read_zip(path: Path) -> Contents:
    archive, contents = zipfile.ZipFile(path), Contents()
    members = archive.infolist()
    packed, claimed = path.stat().st_size, sum(member.file_size for member in members)
    if claimed > unpacking_limit(packed):
        raise InputError(f"claims to unpack {packed} bytes to {claimed}: taken for a decompression bomb")
    for member in members:
        parts, kind = plain_parts(member.filename), stat.S_IFMT(member.external_attr >> 16)
        if parts is None or member.is_dir():
            continue
        if member.flag_bits & 1:
            raise InputError("is encrypted; unpack it first")
        if kind == stat.S_IFLNK and member.file_size <= LONGEST_TARGET:
            contents.links[parts] = target_of(parts[:-1], archive.read(member).decode("utf-8", "surrogateescape"))
        elif kind and kind != stat.S_IFREG:
            contents.lost += not is_hidden(parts)
        else:
            too_large = member.file_size > FILE_LIMIT
            contents.files[parts] = (
                functools.partial(refuse_large, member.file_size)
                if too_large
                else functools.partial(archive.read, member)
            )
    return contents


def _read_tar(
    path: Path, file: BinaryIO, unpack: Callable[[Any], Any] | None, keep: Callable[[Parts], bool], into: Contents
) -> Iterator[None]:
    """Fill `into`, and yield after each member."""
    stream = _Bounded(unpack(file) if unpack else file, unpacking_limit(path.stat().st_size))
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            parts = plain_parts(member.name)
            if parts is None or member.isdir():
                continue
            if member.issym() or member.islnk():
                into.links[parts] = target_of(parts[:-1] if member.issym() else (), member.linkname)
            elif not member.isreg() or member.sparse is not None:
                into.lost += not is_hidden(parts)
            elif unpack is None:
                into.files[parts] = functools.partial(read_file, path, member.offset_data, member.size)
            elif member.size > FILE_LIMIT:
                into.files[parts] = functools.partial(refuse_large, member.size)
            elif keep(parts):
                stream.seek(member.offset_data)
                into.files[parts] = functools.partial(bytes, stream.read(member.size))
            else:
                into.files[parts] = _unread
            yield
    # tarfile stops silently at a damaged header and at a missing end; only a block of zeros is a real end
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise InputError("damaged or truncated tar archive: its end is missing")
    while stream.read(1 << 20):
        pass  # the checksum of a compressed stream is at its end


def _unread() -> bytes:
    """Stand for the bytes of a file that `keep` does not accept."""
    raise InputError("was left out of what was read")


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
