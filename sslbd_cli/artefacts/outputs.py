"""Put outputs in place: each appears whole or not at all, and so do several that belong together.

A file is filled under another name in the same folder, and then renamed. What a killed run left under such a name is
removed by the next run that writes to the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sslbd_cli import signals
from sslbd_cli.errors import DISK_FULL, InputError

LONGEST = 200  # bytes of a file's name that its temporary name repeats; 255 is the most that file systems take
PARTIAL = re.compile(r"\..*\.sslbd-(\d+)-\w{8}\.partial", re.DOTALL)  # the number of the process that fills it
_group: list[_Output] | None = None  # what `together` holds back
_own_partials: set[str] = set()
_tidied_folders: set[Path] = set()


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[BinaryIO]:
    """Yield a file to fill. On success it appears whole at `path` (`-` is standard output), on failure not at all."""
    if path == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal: a binary artefact needs -o FILE or a pipe")
    target = Path(path)
    is_stream = path == "-" or (target.exists() and not target.is_file())
    with _complaint(path):
        output = _Stream(path) if is_stream else _File(path)
    try:
        with _complaint(path), temporary_space() if is_stream else contextlib.nullcontext():
            yield output.file
            output.close()
    except BaseException:
        output.discard()
        raise
    if _group is None:
        _put([output])
    else:
        _group.append(output)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """Yield a folder to fill. On success it appears whole at `path`, which must be free; on failure not at all."""
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise InputError(f"{path}: exists already; name a new folder")
    with _complaint(path):
        parent = target.resolve().parent
        _tidy(parent)
        folder = Path(tempfile.mkdtemp(suffix=".partial", prefix=_prefix(target), dir=parent))
        lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with _complaint(path):
            yield folder
            signals.check()
            folder.chmod(0o777 & ~_mask())
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Hold back all outputs that are written inside. They appear at its end; none does if anything fails."""
    global _group
    if _group is not None:
        yield
        return
    outputs: list[_Output] = []
    _group = outputs
    try:
        yield
    except BaseException:
        for output in outputs:
            output.discard()
        raise
    finally:
        _group = None
    _put(outputs)


def _put(outputs: list[_Output]) -> None:
    """Put outputs in place, streams first, because writing to them may fail."""
    try:
        signals.check()
        for output in sorted(outputs, key=lambda each: isinstance(each, _File)):
            with _complaint(output.path):
                output.put()
    finally:
        for output in outputs:
            output.discard()


@contextlib.contextmanager
def _complaint(path: str) -> Iterator[None]:
    """Turn an OSError into an InputError that names the output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "standard output" if path == "-" else path
        raise InputError(f"cannot write {where}: {error.strerror or error}") from None


@contextlib.contextmanager
def temporary_space() -> Iterator[None]:
    """Turn the error of a full disk into an InputError that names the folder of temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        folder = tempfile.gettempdir()
        raise InputError(f"the folder of temporary files, {folder}, is full; name another one by TMPDIR") from None


class _Output:
    """An output that is being filled."""

    file: BinaryIO

    def __init__(self, path: str) -> None:
        self.path = path

    def close(self) -> None:
        """Finish the filling."""

    def put(self) -> None:
        """Let the output appear."""

    def discard(self) -> None:
        """Remove what is left of an output that did not appear; do nothing for one that did."""


class _Stream(_Output):
    """An unlinked temporary file, which is copied to a pipe or a device."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def put(self) -> None:
        self.file.seek(0)
        with open(self.path, "wb") if self.path != "-" else os.fdopen(os.dup(1), "wb") as out:
            shutil.copyfileobj(self.file, out, 1 << 20)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()


class _File(_Output):
    """A temporary file beside its target. Links are kept (/dev/stdout is one), and so is the mode of an old file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.target = Path(path).resolve()
        _tidy(self.target.parent)
        self.file, self.partial = _new_partial(self.target)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        os.fchmod(self.file.fileno(), _mode(self.target))
        self.file.close()

    def put(self) -> None:
        os.replace(self.partial, self.target)

    def discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial)
        _own_partials.discard(self.partial)
        with contextlib.suppress(OSError):  # of a full disk, which has no room for what is still buffered
            self.file.close()


def _new_partial(target: Path) -> tuple[BinaryIO, str]:
    """Create the temporary file. It is locked while it is filled, which shows other runs that it is no remnant."""
    while True:
        number, name = tempfile.mkstemp(suffix=".partial", prefix=_prefix(target), dir=target.parent)
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(number, fcntl.LOCK_EX)
        if os.fstat(number).st_nlink:
            _own_partials.add(name)
            return os.fdopen(number, "w+b"), name
        os.close(number)  # another run took it for a remnant, before it was locked


def _prefix(target: Path) -> str:
    """Return how the temporary name of an output begins."""
    stem = target.name.encode("utf-8", "surrogateescape")[:LONGEST].decode("utf-8", "ignore")
    return f".{stem}.sslbd-{os.getpid()}-"


def _tidy(folder: Path) -> None:
    """Remove, once for each folder, what killed runs left in it."""
    if folder not in _tidied_folders:
        _tidied_folders.add(folder)
        _remove_stale(folder)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of runs that were killed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = PARTIAL.fullmatch(entry.name)
            if match and entry.path not in _own_partials and not _is_running(int(match[1])):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if a run on another machine fills it
        if stat.S_ISDIR(os.fstat(number).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    finally:
        os.close(number)


def _is_running(process: int) -> bool:
    """Return whether another process of this number runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _mode(target: Path) -> int:
    """Return the permissions of the file that is replaced, or those of a new file."""
    try:
        return stat.S_IMODE(target.stat().st_mode) & 0o777
    except OSError:
        return 0o666 & ~_mask()


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
