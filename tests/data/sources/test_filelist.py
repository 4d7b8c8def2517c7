"""Lists of images: paths with spaces, numbers or names as labels, missing files."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.artefacts.captions import decode
from sslbd_cli.data.source import Made, SourceWish
from sslbd_cli.data.sources.filelist import Filelist
from sslbd_cli.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for shade, name in enumerate(["one.png", "two words.png", "three.png"]):
        Image.new("RGB", (5, 5), (shade, 50, 50)).save(tmp_path / "images" / name)
    return tmp_path


def read(folder: Path, text: str, **wish: object) -> Made:
    (folder / "list.txt").write_text(text, encoding="utf-8")
    return Filelist()(SourceWish(path=folder / "list.txt", **wish))  # type: ignore[arg-type]


def test_numbers_stay_numbers_and_the_order_is_the_lists(folder: Path) -> None:
    found = read(folder, "images/three.png 3\n\nimages/two words.png\t0\r\nimages/one.png 3").dataset
    assert found.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert found.labels is not None and found.labels.tolist() == [3, 0, 3]
    assert found.classes == ("0", "1", "2", "3")


def test_names_are_sorted_into_classes(folder: Path) -> None:
    found = read(folder, "images/one.png zebra\nimages/two words.png ant\nimages/three.png 7\n").dataset
    assert found.classes == ("7", "ant", "zebra")
    assert found.labels is not None and found.labels.tolist() == [2, 1, 0]


def test_a_list_of_paths_alone_makes_a_dataset_without_labels(folder: Path) -> None:
    found = read(folder, "images/two words.png\nimages/one.png\n").dataset
    assert (found.labels, found.classes, found.images[:, 0, 0, 0].tolist()) == (None, (), [1, 0])
    found = read(folder, "images/two words.png\ta cat\n", captions=True).dataset
    assert found.labels is None and decode(found.captions) == ["a cat"]


def test_root_moves_the_paths(folder: Path) -> None:
    assert len(read(folder, "one.png 0\n", root=folder / "images").dataset.images) == 1


def test_a_missing_file_is_named_and_never_skipped(folder: Path) -> None:
    for bad in ("images/absent.png", "images"):
        why = "no such file" if bad != "images" else "not a regular file"
        for skip in (False, True):
            with pytest.raises(InputError, match=rf"list\.txt: {bad}: cannot be read: {why}"):
                read(folder, f"images/one.png 0\n{bad} 1\n", skip_corrupt=skip)


def test_a_byte_order_mark_is_no_part_of_the_first_path(folder: Path) -> None:
    found = read(folder, "\ufeffimages/one.png 0\r\nimages/three.png 1\r\n").dataset
    assert found.images[:, 0, 0, 0].tolist() == [0, 2]


def test_a_list_may_come_from_a_pipe_but_not_from_a_device(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    text = b"images/one.png 0\n"
    writer = threading.Thread(target=(folder / "pipe").write_bytes, args=(text,))
    writer.start()
    assert len(Filelist()(SourceWish(path=folder / "pipe")).dataset.images) == 1
    writer.join()
    with pytest.raises(InputError, match=r"/dev/zero: .*neither a regular file nor a pipe"):
        Filelist()(SourceWish(path=Path("/dev/zero")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no images here"),
        ("images/one.png\nimages/one.png 0\n", "line 2: expected PATH as in the lines before, got 'images/one.png 0'"),
        ("a b.png 0\n\na b.png\n", "line 3: expected PATH LABEL as in the lines before, got 'a b.png'"),
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
        Filelist()(SourceWish(path=folder / "list.txt"))


def test_digest_follows_the_images(folder: Path) -> None:
    before = read(folder, "images/one.png 0\n").digest
    Image.new("RGB", (5, 5), (99, 0, 0)).save(folder / "images" / "one.png")
    assert read(folder, "images/one.png 0\n").digest != before


CAPTIONED = "images/two words.png 3\ta cat, asleep\r\nimages/one.png\t0\t un café \n"


def test_captions_follow_the_last_tab(folder: Path) -> None:
    found = read(folder, CAPTIONED, captions=True).dataset
    assert found.captions is not None and decode(found.captions) == ["a cat, asleep", "un café"]
    assert found.labels is not None and found.labels.tolist() == [3, 0]
    assert found.images[:, 0, 0, 0].tolist() == [1, 0]


def test_captions_keep_to_their_images_when_some_are_left_out(folder: Path) -> None:
    (folder / "images" / "broken.png").write_bytes(b"no image")
    text = "images/broken.png 0\tnothing\n" + CAPTIONED
    found = read(folder, text, captions=True, skip_corrupt=True).dataset
    assert found.captions is not None and decode(found.captions) == ["a cat, asleep", "un café"]


def test_captions_are_not_looked_for_unasked(folder: Path) -> None:
    assert read(folder, "images/one.png\t0\n").dataset.captions is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "images/one.png 0\ta cat\nimages/one.png 0\n",
            "line 2: the caption is missing; expected PATH LABEL or PATH, a tab",
        ),
        ("images/one.png 0\t \n", "line 1: the caption is empty"),
        ("images/one.png 0\t" + "x" * 1025, "line 1: the caption has 1025 bytes, more than 1024"),
        ("\ta cat\n", "line 1: expected PATH LABEL or PATH, got ''"),
    ],
)
def test_bad_captions(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, text, captions=True)


def test_a_caption_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"images/one.png 0\tcaf\xe9\n")
    with pytest.raises(InputError, match="line 1: the caption is not UTF-8"):
        Filelist()(SourceWish(path=folder / "list.txt", captions=True))


def test_the_digest_follows_the_captions(folder: Path) -> None:
    made = [read(folder, f"images/one.png 0\t{text}\n", captions=True) for text in ("a cat", "a dog", "a cat")]
    assert made[0].digest == made[2].digest != made[1].digest
    assert made[0].dataset.sha256 == made[2].dataset.sha256 != made[1].dataset.sha256
