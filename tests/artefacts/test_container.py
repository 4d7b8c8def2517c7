"""Containers: what strangers may put in a file, and what happens to a file when writing it fails."""

import contextlib
import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading

import h5py
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sslbd_cli.artefacts import captions, container, files
from sslbd_cli.artefacts.outputs import atomic_output
from sslbd_cli.convert import statedict
from sslbd_cli.errors import InputError

HEADER = '{"a":1}'
PLAIN = st.sampled_from(["u1", "i4", "i8", "f4", "f8", "?"])
ARRAYS = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3})?", fullmatch=True),
    PLAIN.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
    max_size=4,
).filter(
    lambda arrays: not any(f"{name}/".startswith(f"{other}/") for name in arrays for other in arrays if name != other)
)
WRITERS = [container.write_hdf5, container.write_safetensors]


@pytest.fixture(autouse=True)
def by_a_child(confined, monkeypatch):
    """Read as users do: by a child process, where the HDF5 library may do what it likes."""
    monkeypatch.setattr(container, "_confined", confined)


def same(a: container.Arrays, b: container.Arrays) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        container.read_container(str(path))
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line


@pytest.mark.parametrize("write", WRITERS)
@given(arrays=ARRAYS)
@settings(max_examples=15)
def test_round_trip_and_equal_bytes(tmp_path_factory, write, arrays):
    folder = tmp_path_factory.getbasetemp()
    for name in ("first", "second"):
        write(str(folder / name), HEADER, arrays)
    text, found = container.read_container(str(folder / "first"))
    assert text == HEADER and same(arrays, found)
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_a_long_header_is_kept(tmp_path, write):
    write(str(tmp_path / "a"), header := json.dumps("x" * 100_000), {"a": np.arange(3)})
    assert container.read_container(str(tmp_path / "a"))[0] == header


def test_digest_tells_content_type_shape_and_name_apart():
    base = {"a": np.arange(6, dtype=np.int64)}
    others = [
        {"b": np.arange(6, dtype=np.int64)},
        {"a": np.arange(6, dtype=np.uint64)},
        {"a": np.arange(6, dtype=np.int64).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.int64)[::-1]},
        {"a": np.arange(6, dtype=">i8")},
    ]
    sums = [container.digest({}, arrays) for arrays in [base, *others]] + [container.digest({"m": 1}, base)]
    assert len(set(sums)) == len(sums)
    assert container.digest({}, {"a": np.arange(12, dtype=np.int64)[:6]}) == sums[0]


def test_digest_reads_every_leaf():
    array = np.zeros(2 * container.LEAF + 10, np.uint8)
    before = container.digest({}, {"a": array})
    for at in (0, container.LEAF, 2 * container.LEAF + 9):
        array[at] = 1
        assert container.digest({}, {"a": array}) != before
        array[at] = 0


# --- foreign and hostile files ------------------------------------------------------------------------------------


def test_missing_empty_and_foreign_files(tmp_path):
    assert "No such file" in refused(tmp_path / "missing")
    (tmp_path / "empty").touch()
    assert "is empty" in refused(tmp_path / "empty")
    assert "Is a directory" in refused(tmp_path)
    for number, junk in enumerate(
        [b"a", b"\x89PNG\r\n\x1a\n" + b"0" * 99, b"PK\x03\x04", container.HDF5_MAGIC, b"{}" * 50]
    ):
        path = tmp_path / f"junk{number}"
        path.write_bytes(junk)
        assert "\n" not in refused(path)


def put(path, **content):
    with h5py.File(path, "w") as h5:
        h5.attrs["sslbd"] = HEADER
        for name, value in content.items():
            h5[name] = value
    return path


def test_hdf5_without_our_header_is_foreign(tmp_path):
    with h5py.File(tmp_path / "a", "w") as h5:
        h5["images"] = np.zeros(3)
    assert "no sslbd header" in refused(tmp_path / "a")
    with h5py.File(tmp_path / "b", "w") as h5:
        h5.attrs["sslbd"] = np.arange(3)
    assert "no sslbd header" in refused(tmp_path / "b")


@pytest.mark.parametrize("how", [{"chunks": (2,)}, {"compression": "gzip"}, {"maxshape": (None,)}])
def test_hdf5_that_is_not_contiguous_is_refused(tmp_path, how):
    with h5py.File(put(tmp_path / "a"), "a") as h5:
        h5.create_dataset("x", data=np.arange(10), **how)
    assert "'x' is not contiguous" in refused(tmp_path / "a")


def test_hdf5_links_out_of_the_file_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    put(secret, x=np.arange(5))
    secret.with_suffix(".raw").write_bytes(bytes(40))
    with h5py.File(put(tmp_path / "a", y=np.arange(2)), "a") as h5:
        h5["x"] = h5py.ExternalLink(str(secret), "/x")
    assert set(container.read_container(str(tmp_path / "a"))[1]) == {"y"}
    with h5py.File(put(tmp_path / "b"), "a") as h5:
        h5.create_dataset("x", (5,), "i8", external=[(str(secret.with_suffix(".raw")), 0, 40)])
    assert "'x' is not" in refused(tmp_path / "b")
    with h5py.File(put(tmp_path / "c"), "a") as h5:
        layout = h5py.VirtualLayout((5,), "i8")
        layout[:] = h5py.VirtualSource(str(secret), "x", (5,))
        h5.create_virtual_dataset("x", layout)
    assert "'x' is not plain numeric data" in refused(tmp_path / "c")


def test_hdf5_of_other_types_is_refused(tmp_path):
    strange = {
        "strings": np.array(["a", "b"], dtype=h5py.string_dtype()),
        "ragged": np.array([np.arange(2), np.arange(3)], dtype=h5py.vlen_dtype(np.int32)),
        "compound": np.zeros(3, dtype=[("a", "i4"), ("b", "f4")]),
        "complex": np.zeros(3, np.complex64),
        "opaque": np.void(b"abc"),
        "null": h5py.Empty("f4"),
    }
    for name, value in strange.items():
        with h5py.File(put(tmp_path / name), "a") as h5:
            h5.create_dataset("x", data=value, dtype=getattr(value, "dtype", None))
        assert "'x' is not plain numeric data" in refused(tmp_path / name)


def test_hdf5_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    with h5py.File(put(tmp_path / "a"), "a") as h5:
        h5.create_dataset("x", (1 << 40,), "u1")  # never written: no space is allocated
    assert "'x' is not contiguous" in refused(tmp_path / "a")
    with h5py.File(put(tmp_path / "b"), "a") as h5:
        h5.create_dataset("x", (1 << 31, 1 << 31, 1 << 31), "u1")  # overflows 64 bits
    refused(tmp_path / "b")


def test_hdf5_cycles_end(tmp_path):
    with h5py.File(put(tmp_path / "a", x=np.arange(3)), "a") as h5:
        h5["group/again"] = h5["/"]
        h5["group/soft"] = h5py.SoftLink("/group")
    assert "x" in container.read_container(str(tmp_path / "a"))[1]


def test_work_that_hangs_dies_or_eats_memory_is_stopped():
    def hang():
        while True:
            pass

    for work in (hang, os.abort, lambda: os.kill(os.getpid(), 11), lambda: {"x": len(bytearray(1 << 40))}):
        assert "error" in json.loads(container._confined(work, 0, seconds=1))
    assert json.loads(container._confined(lambda: {"a": 1}, 0)) == {"a": 1}
    assert json.loads(container._confined(lambda: {"a": "x" * 1_000_000}, 0)) == {"a": "x" * 1_000_000}


def test_confined_work_leaves_no_process_behind():
    container._confined(dict, 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def tensors(header: object, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def claim(**entries: object) -> bytes:
    return tensors({"__metadata__": {"sslbd": HEADER}, **entries})


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "huge shape": claim(a=entry([1 << 40], 0, 64)),
    "overlap": claim(a=entry([8], 0, 32), b=entry([8], 16, 48), c=entry([4], 48, 64)),
    "past the end": claim(a=entry([16], 0, 1 << 50)),
    "hole": claim(a=entry([4], 0, 16), b=entry([4], 48, 64)),
    "negative shape": claim(a=entry([-16], 0, 64)),
    "no such type": claim(a=entry([16], 0, 64, "X99")),
    "no entry": claim(a=5),
    "metadata is a number": tensors({"__metadata__": 5}),
    "header is a number": tensors({"__metadata__": {"sslbd": 5}}),
    "a list": tensors([1, 2]),
    "braces": tensors(b"{" * 5000),
    "deep": tensors(b'{"a":' * 50_000),
    "not utf-8": tensors(b"{\xff\xfe}"),
    "longer than the file": struct.pack("<Q", 1 << 25) + b"{}",
    "absurd length": struct.pack("<Q", (1 << 63) - 1) + b"{}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a")


def test_hostile_safetensors_are_refused_for_what_they_claim(tmp_path):
    (tmp_path / "a").write_bytes(claim(a=entry([16], 0, 64)))
    assert container.read_container(str(tmp_path / "a"))[1]["a"].shape == (16,)


def test_foreign_safetensors_point_to_convert(tmp_path):
    safetensors.numpy.save_file({"conv1.weight": np.zeros(3)}, tmp_path / "a")
    assert "import it with 'sslbd convert'" in refused(tmp_path / "a")
    (tmp_path / "b").write_bytes(tensors({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)))
    assert "import it with 'sslbd convert'" in refused(tmp_path / "b")


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_failing_writer_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_output(str(tmp_path / "a")) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_keeps_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_output(str(tmp_path / "a")) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_output(str(tmp_path / "a")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="cannot write /dev/full: No space left"):
        container.write_hdf5("/dev/full", HEADER, {"a": np.arange(3)})


SMALL_DISK = """
import resource, signal, sys
import numpy as np
from sslbd_cli.artefacts import container
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
getattr(container, sys.argv[1])("a", "{}", {"a": np.zeros(1_000_000, np.uint8), "b": np.zeros(10)})
"""


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path, write):
    argv = [sys.executable, "-c", SMALL_DISK, write.__name__]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].endswith("InputError: cannot write a: File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_folder_are_input_errors(tmp_path):
    for path in (tmp_path / "no" / "a", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            container.write_safetensors(str(path), HEADER, {"a": np.arange(3)})


def test_output_replaces_a_file_whole_and_a_new_one_has_the_usual_mode(tmp_path):
    (tmp_path / "a").write_bytes(b"old" * 10_000)
    before = os.umask(0o027)
    try:
        for name in "ab":
            container.write_safetensors(str(tmp_path / name), HEADER, {"a": np.arange(3)})
    finally:
        os.umask(before)
    assert container.read_container(str(tmp_path / "a"))[0] == HEADER
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640


def test_output_over_its_own_input(tmp_path):
    path = str(tmp_path / "a")
    container.write_hdf5(path, HEADER, {"x": np.arange(100_000)})
    _, arrays = container.read_container(path)
    container.write_hdf5(path, HEADER, {"y": arrays["x"] + 1})
    assert container.read_container(path)[1]["y"][-1] == 100_000 and arrays["x"][-1] == 99_999


def test_output_goes_through_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    container.write_safetensors(str(tmp_path / "link"), HEADER, {"a": np.arange(3)})
    assert (tmp_path / "link").is_symlink()
    assert container.read_container(str(tmp_path / "real"))[0] == HEADER


def test_a_named_pipe_carries_the_same_bytes_both_ways(tmp_path):
    container.write_hdf5(str(tmp_path / "a"), HEADER, {"x": np.arange(1000)})
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(
        target=container.write_hdf5, args=(str(tmp_path / "fifo"), HEADER, {"x": np.arange(1000)})
    )
    writer.start()
    received = (tmp_path / "fifo").read_bytes()
    writer.join()
    assert received == (tmp_path / "a").read_bytes()
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(received,))
    writer.start()
    text, arrays = container.read_container(str(tmp_path / "fifo"))
    writer.join()
    assert text == HEADER and arrays["x"][-1] == 999


def test_safetensors_are_written_as_the_library_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
    shapes = {"z": (3,), 'a"\\é\n': (2, 0), "m": (), "": (2, 3)}
    arrays = {f"{name}.{kind}": rng.integers(0, 2, shapes[name]).astype(kind) for kind in kinds for name in shapes}
    for metadata in ({}, {"sslbd": '{"a":"é\\u0007"}'}):
        with (tmp_path / "out").open("wb") as file:
            container.dump_safetensors(file, arrays, metadata)
        assert (tmp_path / "out").read_bytes() == safetensors.numpy.save(arrays, metadata=metadata or None)


# --- devices and pipes that never end -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [container.read_container, statedict.read, captions.read_lines])
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom"])
def test_a_device_is_neither_a_file_nor_a_pipe(read, path):
    with pytest.raises(InputError, match=f"^{path}: is a device"):
        read(path)


@pytest.mark.parametrize("read", [container.read_container, statedict.read])
def test_a_pipe_that_never_ends_is_refused_by_its_first_bytes(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    written = []

    def flood() -> None:
        with contextlib.suppress(BrokenPipeError), open(tmp_path / "pipe", "wb") as pipe:
            while len(written) < 1000:
                written.append(pipe.write(bytes(1 << 20)))

    writer = threading.Thread(target=flood)
    writer.start()
    with pytest.raises(InputError, match=r"pipe: (not an sslbd artefact|is neither safetensors nor)"):
        read(str(tmp_path / "pipe"))
    writer.join(20)
    assert len(written) < 5


def test_a_file_that_another_may_exchange_is_opened_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            files.open_regular(path)
    (tmp_path / "a").write_bytes(b"abc")
    with files.open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"


def test_a_full_folder_of_temporary_files_is_named(monkeypatch, tmp_path, capfd):
    """Pipes are spooled there, in both directions; a device that is full itself is named itself."""

    def fill(*files: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    full = f"the folder of temporary files, {tmp_path}, is full; name another one by TMPDIR"
    with pytest.raises(InputError, match=full), container.atomic_output("-"):
        fill()
    with pytest.raises(InputError, match="cannot write /dev/full"), container.atomic_output("/dev/full") as file:
        file.write(b"x" * 10)
    reading, writing = os.pipe()
    os.close(writing)
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(InputError, match=full), container.seekable(f"/dev/fd/{reading}"):
        pass
    os.close(reading)
