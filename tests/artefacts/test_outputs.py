"""Outputs: several appear together or not at all, remnants of killed runs go, and an old file's mode stays."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from sslbd_cli.artefacts import outputs
from sslbd_cli.artefacts.outputs import atomic_output, new_folder, together
from sslbd_cli.errors import InputError

DEAD = 2**22 + 1  # no process has this number


def write(path: Path | str, content: bytes = b"new") -> None:
    with atomic_output(str(path)) as file:
        file.write(content)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(outputs, "_tidied_folders", set())


def test_several_outputs_appear_at_the_end(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with together():
        write(tmp_path / "a")
        with together():
            write(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == b"old" and not (tmp_path / "b").exists()
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == [("a", b"new"), ("b", b"new")]
    write(tmp_path / "c")
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize("last", ["missing/x", "/dev/full", "raise"])
def test_if_one_fails_none_appears(tmp_path, last):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises((InputError, KeyboardInterrupt)), together():
        write(tmp_path / "a")
        write(tmp_path / "b")
        if last == "raise":
            raise KeyboardInterrupt
        write(last if last[0] == "/" else tmp_path / last)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o440])
def test_the_mode_of_a_replaced_file_stays(tmp_path, mode):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    write(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode and (tmp_path / "a").read_bytes() == b"new"


def test_remnants_of_killed_runs_go_and_files_in_work_stay(tmp_path):
    gone = [f".a.sslbd-{DEAD}-abcdefgh.partial", f".b.h5.sslbd-{os.getpid()}-12345678.partial"]
    kept = [f".a.sslbd-{os.getppid()}-abcdefgh.partial", ".a.abcdefgh.partial", "a.partial", f"x.sslbd-{DEAD}-abcdefgh"]
    elsewhere = f".locked.sslbd-{DEAD}-abcdefgh.partial"
    for name in (*gone, *kept, elsewhere):
        (tmp_path / name).touch()
    with open(tmp_path / elsewhere, "rb") as held:  # as a run on another machine holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with together():
            write(tmp_path / "new")
            outputs._tidied_folders.clear()
            write(tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, elsewhere, "new", "other"}


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 240 + ".h5"])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    remnant = tmp_path / f".x.sslbd-{DEAD}-abcdefgh.partial"
    (remnant / "deep").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), new_folder(str(tmp_path / "out")) as folder:
        (folder / "a").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_folder(str(tmp_path / "out")) as folder:
        (folder / "a").touch()
        outputs._tidied_folders.clear()
        write(tmp_path / "other")
    assert (tmp_path / "out" / "a").exists() and stat.S_IMODE((tmp_path / "out").stat().st_mode) & 0o700 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    for path, problem in ((tmp_path / "out", "exists already"), (tmp_path / "no" / "out", "cannot write")):
        with pytest.raises(InputError, match=problem), new_folder(str(path)):
            pass


def test_a_full_disk_leaves_nothing_and_names_the_output(tmp_path, monkeypatch):
    honest = outputs._new_partial

    class Full:
        """A file on a full disk: what is buffered cannot be flushed when it is closed either."""

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.write(b"")

    def new_partial(target):
        file, name = honest(target)
        file.close()
        return Full(), name

    monkeypatch.setattr(outputs, "_new_partial", new_partial)
    place = str(tmp_path / "out")
    with pytest.raises(InputError, match=f"cannot write {place}: No space left"), atomic_output(place) as file:
        file.write(b"much")
    assert list(tmp_path.iterdir()) == []
