"""NumPy archives: both layouts, and nothing hostile is loaded."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sslbd_cli.data.source import Made, SourceWish
from sslbd_cli.data.sources.npz import Npz
from sslbd_cli.errors import InputError

X = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
Y = np.array([0, 2, 1, 0, 2, 2])


def read(tmp_path: Path, **arrays: object) -> Made:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    return Npz()(SourceWish(path=tmp_path / "a.npz"))


def test_both_layouts_are_one_dataset(tmp_path: Path) -> None:
    last = read(tmp_path, x=X, y=Y).dataset
    first = read(tmp_path, x=X.transpose(0, 3, 1, 2), y=Y.astype(np.uint8)[:, None]).dataset
    assert last.sha256 == first.sha256
    assert last.images.shape == (6, 3, 8, 10)
    assert np.array_equal(last.images[:, 1], X[..., 1])
    assert last.labels is not None and last.labels.tolist() == Y.tolist()
    assert last.classes == ("0", "1", "2")


def test_names_may_be_given_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, x=X, y=Y, classes=np.array(["b", "a", "c", "unused"])).dataset.classes[:2] == ("b", "a")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.npz: two classes have the name 'a'; rename one"):
        read(tmp_path, x=X, y=Y, classes=np.array(["a", "a", "b"]))


def test_images_alone_are_a_dataset_without_labels(tmp_path: Path) -> None:
    found = read(tmp_path, x=X).dataset
    assert (found.labels, found.classes) == (None, ()) and np.array_equal(found.images[:, 2], X[..., 2])
    assert len(Npz()(SourceWish(path=tmp_path / "a.npz", limit=2)).dataset.images) == 2
    with pytest.raises(InputError, match="--per-class needs labels, and there are none here"):
        Npz()(SourceWish(path=tmp_path / "a.npz", per_class=2))


def test_resizing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    found = Npz()(SourceWish(path=tmp_path / "a.npz", size=4)).dataset
    assert found.images.shape == (6, 3, 4, 4)


class Trap:
    """An object that, unpickled, leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["x", "y", "classes"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, place: str) -> None:
    arrays = {"x": X, "y": Y} | {place: np.array([Trap(tmp_path / "mark")], dtype=object)}
    with pytest.raises(InputError, match=r"a\.npz: damaged or not an \.npz file$"):
        read(tmp_path, **arrays)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "labels": Y}, "no array 'y' among x, labels; expected x and y, or x alone for no labels"),
        ({"x": X, "classes": np.array(["a"])}, "no array 'y' among x, classes"),
        ({"y": Y}, "no array 'x' among y"),
        ({}, "no array 'x' among none"),
        ({"images": X, "y": Y}, "no array 'x' among images, y"),
        ({"x": X.astype(np.float32), "y": Y}, r"x is float32 \(6, 8, 10, 3\), expected uint8"),
        ({"x": X[..., 0], "y": Y}, "expected uint8"),
        ({"x": X[..., :2], "y": Y}, "expected uint8"),
        ({"x": X[:, :3], "y": Y}, "expected uint8"),
        ({"x": X, "y": Y[:-1]}, "x holds 6 images, y 5 labels"),
        ({"x": X, "y": Y / 2}, "y is float64"),
        ({"x": X, "y": np.stack([Y, Y], 1)}, "y is int64"),
        ({"x": X, "y": Y - 1}, "label -1 is not a number from 0"),
        ({"x": X, "y": Y * 10**12}, "label 2000000000000 is not a number from 0"),
        ({"x": X, "y": np.full(6, 2**64 - 1, np.uint64)}, "is not a number from 0"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, "expected at least 3 names"),
        ({"x": X[:0], "y": Y[:0]}, "no images here"),
        ({"x": X[:, :2], "y": Y}, "smaller than 4 pixels"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **arrays)


def test_foreign_truncated_and_lying_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    whole = path.read_bytes()
    np.save(tmp_path / "b.npy", X)
    for data in (b"", b"text", whole[: len(whole) // 2], (tmp_path / "b.npy").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.npz: "):
            Npz()(SourceWish(path=path))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 8, 8, 3), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("y.npy", b"")
    with pytest.raises(InputError, match=r"a\.npz: "):
        Npz()(SourceWish(path=path))


def test_bombs_are_refused_before_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslbd_cli.data.sources.npz.unpacking_limit", lambda packed: 10 * packed)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((500, 32, 32, 3), np.uint8), y=np.zeros(500, np.int64))
    with pytest.raises(InputError, match="decompression bomb"):
        Npz()(SourceWish(path=tmp_path / "a.npz"))
