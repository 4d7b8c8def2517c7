"""Lists of images: paths with spaces, numbers or names as labels, missing files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.core.errors import InputError
from sslbd_cli.core.sources import Made, Wish
from sslbd_cli.sources.filelist import Filelist


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for shade, name in enumerate(["one.png", "two words.png", "three.png"]):
        Image.new("RGB", (5, 5), (shade, 50, 50)).save(tmp_path / "images" / name)
    return tmp_path


def read(folder: Path, text: str, **wish: object) -> Made:
    (folder / "list.txt").write_text(text)
    return Filelist()(Wish(path=folder / "list.txt", **wish))  # type: ignore[arg-type]


def test_numbers_stay_numbers_and_the_order_is_the_lists(folder: Path) -> None:
    found = read(folder, "images/three.png 3\n\nimages/two words.png\t0\r\nimages/one.png 3").dataset
    assert found.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert found.labels is not None and found.labels.tolist() == [3, 0, 3]
    assert found.classes == ("0", "1", "2", "3")


def test_names_are_sorted_into_classes(folder: Path) -> None:
    found = read(folder, "images/one.png zebra\nimages/two words.png ant\nimages/three.png 7\n").dataset
    assert found.classes == ("7", "ant", "zebra")
    assert found.labels is not None and found.labels.tolist() == [2, 1, 0]


def test_root_moves_the_paths(folder: Path) -> None:
    assert len(read(folder, "one.png 0\n", root=folder / "images").dataset.images) == 1


def test_a_missing_file_is_named_or_skipped(folder: Path) -> None:
    text = "images/one.png 0\nimages/absent.png 1\nimages 1\n"
    with pytest.raises(InputError, match=r"list\.txt: images/absent\.png: corrupt image: no such file"):
        read(folder, text)
    made = read(folder, text, skip_corrupt=True)
    assert made.skipped == (("images/absent.png", "no such file"), ("images", "not a regular file"))
    assert made.dataset.ids is not None and made.dataset.ids.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no images here"),
        ("images/one.png\n", "line 1: expected PATH LABEL"),
        ("images/one.png 0\nx\0y 0\n", "line 2: expected PATH LABEL"),
        ("images/one.png -1\n", "label -1 is not a number"),
        ("images/one.png 99999999\n", "label 99999999 is not a number"),
    ],
)
def test_bad_lists(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, text)


def test_a_binary_file_is_no_list(folder: Path) -> None:
    (folder / "list.txt").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(InputError, match=r"list\.txt: "):
        Filelist()(Wish(path=folder / "list.txt"))


def test_digest_follows_the_images(folder: Path) -> None:
    before = read(folder, "images/one.png 0\n").digest
    Image.new("RGB", (5, 5), (99, 0, 0)).save(folder / "images" / "one.png")
    assert read(folder, "images/one.png 0\n").digest != before
