"""torchvision's datasets, from micro files in the published layouts."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

from sslbd_cli import plugin
from sslbd_cli.data.source import Made, SourceWish
from sslbd_cli.errors import InputError

RNG = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def read(spec: str, root: Path, split: str | None, **wish: Any) -> Made:
    made: Made = plugin.parse("source", spec)(SourceWish(root=root, split=split, **wish))
    return made


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    maker = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = tmp_path / maker.base_folder
    folder.mkdir()
    pixels = RNG.integers(0, 256, (4, 3072), np.uint8)
    files = {"b1": {"data": pixels, "labels": [1, 0, 1, 1]}, "t1": {"data": pixels[:2], "labels": [0, 1]}}
    files["meta"] = {maker.meta["key"]: ["ant", "bee"]}
    for file, content in files.items():
        (folder / file).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(maker, "train_list", [["b1", md5(folder / "b1")]])
    monkeypatch.setattr(maker, "test_list", [["t1", md5(folder / "t1")]])
    monkeypatch.setattr(maker, "meta", {**maker.meta, "filename": "meta", "md5": md5(folder / "meta")})
    found = read(name, tmp_path, "train").dataset
    assert np.array_equal(found.images, pixels.reshape(4, 3, 32, 32))
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1, 1]
    assert found.classes == ("ant", "bee")
    assert len(read(name, tmp_path, "test").dataset.images) == 2


def test_pickles_without_the_published_md5_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "mark"),)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / file).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="no complete CIFAR10 in this folder"):
        read("cifar10", tmp_path, "test")
    assert not (tmp_path / "mark").exists()


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = torchvision.datasets.STL10
    folder = tmp_path / maker.base_folder
    folder.mkdir()
    stored = RNG.integers(0, 256, (3, 3, 96, 96), np.uint8)  # columns before rows
    for file in ("x", "u"):
        (folder / f"{file}.bin").write_bytes(stored.tobytes())
    (folder / "y.bin").write_bytes(bytes([1, 10, 3]))
    sums = {name: [name, md5(folder / name)] for name in ("x.bin", "y.bin", "u.bin")}
    monkeypatch.setattr(maker, "train_list", [sums["x.bin"], sums["y.bin"], sums["u.bin"]])
    monkeypatch.setattr(maker, "test_list", [sums["x.bin"], sums["y.bin"]])
    found = read("stl10", tmp_path, "train").dataset
    assert np.array_equal(found.images, stored.transpose(0, 1, 3, 2))
    assert found.labels is not None and [found.classes[label] for label in found.labels] == ["airplane", "truck", "car"]
    unlabeled = read("stl10", tmp_path, "unlabeled", size=32).dataset
    assert unlabeled.labels is None and unlabeled.images.shape == (3, 3, 32, 32)
    with pytest.raises(InputError, match="--per-class needs labels"):
        read("stl10", tmp_path, "unlabeled", per_class=1)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 256, (32, 32, 3, 4), np.uint8)
    path = tmp_path / "test_32x32.mat"
    scipy.io.savemat(path, {"X": pixels, "y": np.array([[10], [1], [9], [10]], np.uint8)})
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {"test": ["", path.name, md5(path)]})
    found = read("svhn", tmp_path, "test").dataset
    assert np.array_equal(found.images, pixels.transpose(3, 2, 0, 1))
    assert found.labels is not None and found.labels.tolist() == [0, 1, 9, 0]


def picture(path: Path, shade: int, size: tuple[int, int] = (9, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def test_gtsrb(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for shade, name in enumerate(["00000/1.ppm", "00000/0.ppm", "00001/0.ppm"]):
        picture(base / "GTSRB" / "Training" / name, shade, (8 + shade, 8))
    picture(base / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 7)
    (base / "GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n00000.ppm;9;8;42\n")
    found = read("gtsrb", tmp_path, "train", size=8).dataset
    assert found.images[:, 0, 0, 0].tolist() == [1, 0, 2]
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1]
    test = read("gtsrb", tmp_path, "test", size=8).dataset
    assert test.labels is not None and test.classes[test.labels[0]] == "00042"
    with pytest.raises(InputError, match="give --size"):
        read("gtsrb", tmp_path, "train")


def test_imagenette(tmp_path: Path) -> None:
    for shade, name in enumerate(["n01440764/a.JPEG", "n02102040/b.JPEG"]):
        picture(tmp_path / "imagenette2-160" / "val" / name, 100 * shade)
    found = read("imagenette:variant=160px", tmp_path, "val", size=8)
    assert found.dataset.classes == ("n01440764", "n02102040")
    assert found.dataset.labels is not None and found.dataset.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="no complete Imagenette"):
        read("imagenette", tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("cifar10", "train, test"),
        ("cifar100", "train, test"),
        ("stl10", "train, test, unlabeled"),
        ("svhn", "train, test, extra"),
        ("gtsrb", "train, test"),
        ("imagenette", "train, val"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, name: str, splits: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"choose one of its splits with --split: {splits}"):
        read(name, tmp_path, None)
    with pytest.raises(InputError, match=f"no split 'valid'; it has {splits}"):
        read(name, tmp_path, "valid")
    with pytest.raises(InputError, match=rf"{tmp_path}: no complete .* give the --root that holds it, or --download"):
        read(name, tmp_path, "train")
    with pytest.raises(InputError, match="needs --root"):
        plugin.parse("source", name)(SourceWish(split="train"))
    assert capsys.readouterr().out == ""


def test_what_torchvision_prints_stays_off_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(self: object, *args: object, **options: object) -> None:
        print("downloading")
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.SVHN, "__init__", chatty)
    with pytest.raises(InputError, match="SVHN could not be downloaded: no network"):
        read("svhn", tmp_path, "train", download=True)
    assert capsys.readouterr().out == ""
