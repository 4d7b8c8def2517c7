"""Exported datasets: each form is read back to the same pixels, the truth lies beside, and class names stay inside."""

import csv
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from sslbd_cli.artefacts import captions
from sslbd_cli.artefacts.kinds import Dataset, Truth, read, write
from sslbd_cli.convert import images
from sslbd_cli.main import run

RNG = np.random.default_rng(0)


@pytest.fixture
def poisoned() -> Dataset:
    """Seven images of three classes, the middle one without images, with captions and a poisoned image."""
    truth = Truth(poisoned=np.arange(7) == 2, box=np.eye(7, 4, dtype=np.int32), source=np.arange(7)[::-1].copy())
    texts = captions.encode([f"caption {row}, é" for row in range(7)])
    return Dataset(
        images=RNG.integers(0, 256, (7, 3, 6, 8), np.uint8), labels=np.array([2, 0, 2, 0, 0, 2, 0]), ids=np.arange(7),
        captions=texts, classes=("cat, wild", "none", "dog/..\\x"), truth=truth,
    )  # fmt: skip


@pytest.fixture
def sslbd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: run([*map(str, words), "-q"])


def back(sslbd, *words) -> Dataset:
    assert sslbd("data", *words, "-o", "back.h5") == 0
    return read("back.h5", Dataset)


def test_folders_and_their_list(sslbd, poisoned, tmp_path):
    write(poisoned, "in.h5")
    assert sslbd("convert", "in.h5", "--to", "folder", "-o", "out") == 0
    found = back(sslbd, "folder", "out")
    order = np.argsort(poisoned.labels, kind="stable")
    assert np.array_equal(found.images, poisoned.images[order]) and found.labels.tolist() == [0] * 4 + [1] * 3
    assert found.classes == ("cat, wild", "dog%2F..%5Cx") and found.truth is None
    listed = back(sslbd, "filelist", "out/list.txt", "--captions")
    assert np.array_equal(listed.images, poisoned.images) and np.array_equal(listed.labels, poisoned.labels)
    assert np.array_equal(listed.captions, poisoned.captions)
    rows = list(csv.DictReader((tmp_path / "out" / "truth.csv").read_text().splitlines()))
    assert [row["poisoned"] for row in rows] == list("0010000") and rows[1]["source"] == "5" and rows[1]["y"] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.h5", "in.h5", "out"]


def test_images_without_labels_lie_in_one_folder(sslbd, poisoned):
    bare = replace(poisoned, labels=None, captions=None, classes=(), truth=None)
    write(bare, "in.h5")
    assert sslbd("convert", "in.h5", "--to", "folder", "-o", "out") == 0
    for words in (("folder", "out"), ("filelist", "out/list.txt")):
        found = back(sslbd, *words)
        assert np.array_equal(found.images, bare.images) and found.labels is None


def test_an_npz_file(sslbd, poisoned):
    for name, dataset in (("whole", poisoned), ("bare", replace(poisoned, labels=None, classes=()))):
        write(dataset, f"{name}.h5")
        assert sslbd("convert", f"{name}.h5", "--to", "npz", "-o", f"{name}.npz") == 0
        assert back(sslbd, "npz", f"{name}.npz", "--captions").sha256 == dataset.sha256
    arrays = np.load("whole.npz")
    assert arrays["x"].shape == (7, 6, 8, 3) and arrays["truth_poisoned"].tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_shards(sslbd, poisoned, tmp_path, monkeypatch):
    monkeypatch.setattr("sslbd_cli.convert.images.SHARD", 3)
    write(poisoned, "in.h5")
    for name in ("out", "again"):
        assert sslbd("convert", "in.h5", "--to", "webdataset", "-o", name) == 0
    for number, members in (("0", 9), ("1", 9), ("2", 3)):
        data = (tmp_path / "out" / f"00000{number}.tar").read_bytes()
        assert data == (tmp_path / "again" / f"00000{number}.tar").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as shard:
            assert len(shard.getnames()) == members
    found = back(sslbd, "webdataset", "out", "--captions")
    assert np.array_equal(found.images, poisoned.images) and np.array_equal(found.labels, poisoned.labels)
    assert np.array_equal(found.captions, poisoned.captions) and found.classes == poisoned.classes
    assert (tmp_path / "out" / "truth.csv").is_file()


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(sslbd, poisoned, tmp_path, capsys):
    write(poisoned, "in.h5")
    write(replace(poisoned, classes=("a", "A", "b")), "case.h5")
    write(replace(poisoned, classes=("x" * 300, "y", "..")), "long.h5")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for words, problem in (
        (("in.h5", "--to", "folder"), "writes a folder; name a new one by -o"),
        (("in.h5", "--to", "folder", "-o", "there"), "is a folder; name a file"),
        (("case.h5", "--to", "folder", "-o", "new"), "differ in nothing but case"),
        (("long.h5", "--to", "folder", "-o", "new"), "cannot be the name of a folder; use --to npz or webdataset"),
        (("in.h5", "--to", "npz", "-o", "new.npz", "--normalise", "half"), "--normalise is for encoders"),
        (("in.h5", "--to", "timm", "-o", "new.st"), "expected an encoder, got a dataset"),
    ):
        assert sslbd("convert", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert problem in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_class_names_that_a_form_cannot_keep_are_named():
    odd = Dataset(images=np.zeros((2, 3, 4, 4), np.uint8), labels=np.array([0, 1]), classes=("cat/dog", "a\u2028b"))
    assert images.changed_names(odd, "npz") == {}
    assert images.changed_names(odd, "folder") == {"cat/dog": "cat%2Fdog", "a\u2028b": "a%E2%80%A8b"}
    assert images.changed_names(odd, "webdataset") == {"a\u2028b": "a b"}
