"""`sslbd data`: datasets that any command can read, the same bytes again, and one line for every mistake."""

import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.data.sources import shapes
from sslbd_cli.main import run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of 8x8 in each of two classes of two splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def make(tmp_path: Path, *words: object) -> kinds.Dataset:
    out = tmp_path / "out.h5"
    assert run(["data", *map(str, words), "-o", str(out)]) == 0
    return kinds.read(str(out), kinds.Dataset)


def test_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = make(tmp_path, "shapes", "--count", 40, "--size", 16, "--seed", 1)
    images, labels = shapes.draw(40, 16, 1)
    assert np.array_equal(found.images, images)
    assert found.labels is not None and np.array_equal(found.labels, labels)
    assert found.ids is not None and found.ids.tolist() == list(range(40))
    assert found.classes == shapes.CLASSES
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "sslbd data: 40 images of 16x16, 10 classes of 4\n")


def test_shapes_is_the_default_and_defaults_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shapes.draw(20, 8, 0)
    monkeypatch.setattr(shapes, "draw", lambda count, size, seed: small if (count, size) == (4000, 32) else None)
    (entry,) = make(tmp_path).history
    assert entry["args"] == {"@name": "shapes", "--count": 20, "--size": 8, "--seed": 0}


def test_a_negative_seed_is_a_seed(tmp_path: Path) -> None:
    assert (
        make(tmp_path, "shapes", "--count", 10, "--seed", -1).sha256
        != make(tmp_path, "--count", 10, "--seed", 1).sha256
    )


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, photos: Path) -> None:
    outputs = []
    for name in ("a.h5", "b.h5"):
        words = ["data", "folder", str(photos), "--split", "train", "--per-class", "2", "--seed", "5"]
        assert run([*words, "-o", str(tmp_path / name)]) == 0
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1]


def test_subsets(tmp_path: Path, photos: Path) -> None:
    whole = make(tmp_path, "folder", photos, "--split", "test")
    assert len(whole.images) == 8
    few = make(tmp_path, "folder", photos, "--split", "test", "--limit", 3, "--seed", 2)
    assert few.ids is not None and np.array_equal(few.images, whole.images[few.ids])
    each = make(tmp_path, "folder", photos, "--split", "test", "--per-class", 3)
    assert each.labels is not None and np.bincount(each.labels).tolist() == [3, 3]


def test_history_names_files_by_digest_and_no_path(tmp_path: Path, photos: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar.xz", "w:xz") as archive:
        archive.add(photos, "photos")
    packed = make(tmp_path, "folder", tmp_path / "photos.tar.xz", "--split", "train")
    loose = make(tmp_path, "folder", photos, "--split", "train")
    assert packed.sha256 == loose.sha256
    for found, name in ((packed, "photos.tar.xz"), (loose, "photos")):
        (entry,) = found.history
        assert entry["args"] == {"@name": "folder", "--split": "train", "--size": 8, "--seed": 0}
        (source,) = entry["inputs"]
        assert (source["option"], source["file"], len(source["sha256"])) == ("INPUT", name, 64)
        assert str(tmp_path) not in str(found.history)


def test_npz_and_filelist_through_the_command(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 3, 8, 8), np.uint8), y=np.arange(3))
    assert len(make(tmp_path, "npz", tmp_path / "a.npz", "--size", 4).classes) == 3
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 8, 12), np.uint8))
    capsys.readouterr()
    assert make(tmp_path, "npz", tmp_path / "x.npz").labels is None
    assert capsys.readouterr().err == "sslbd data: 1 image of 12x8, no labels\n"
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 8, 12), np.uint8), y=np.zeros(2, np.int64))
    make(tmp_path, "npz", tmp_path / "x.npz")
    assert capsys.readouterr().err == "sslbd data: 2 images of 12x8, 1 class of 2\n"
    (tmp_path / "list.txt").write_text("train/cat/0.png 1\n")
    assert len(make(tmp_path, "filelist", tmp_path / "list.txt", "--root", photos).images) == 1


def test_classes_are_numbered_as_in_another_dataset(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lines in (("train", ["train/cat/0.png 2", "train/dog/0.png 3"]), ("test", ["test/cat/1.png 2"])):
        (photos / f"{name}.txt").write_text("\n".join(lines))
    train = tmp_path / "train.h5"
    assert run(["data", "filelist", str(photos / "train.txt"), "-o", str(train)]) == 0
    words = ["filelist", photos / "test.txt", "--classes-of", train]
    found = make(tmp_path, *words)
    assert found.classes == ("0", "1", "2", "3") and found.labels.tolist() == [2]
    assert [row["option"] for row in found.history[-1]["inputs"]] == ["--classes-of", "INPUT"]
    assert run(["data", "folder", str(photos), "--split", "test", *map(str, words[2:]), "-o", "/dev/null"]) == 2
    assert "class 'cat' is none of the 4 given classes; they are 0, 1, 2, 3" in capsys.readouterr().err


def test_a_backslash_keeps_the_comma_in_a_class(tmp_path: Path, photos: Path) -> None:
    (photos / "train" / "cat").rename(photos / "train" / "cat, wild")
    found = make(tmp_path, "folder", photos, "--split", "train", "--classes", r"dog,cat\, wild")
    assert found.classes == ("cat, wild", "dog")
    assert found.history[0]["args"]["--classes"] == r"dog,cat\, wild"


def test_corrupt_images_are_counted_and_the_first_named(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        (photos / "train" / "cat" / f"x{number:02}.png").write_bytes(b"no image")
    assert run(["data", "folder", str(photos), "--split", "train", "-o", str(tmp_path / "out.h5")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sslbd data: {photos}: train/cat/x00.png: corrupt image: ")
    assert not (tmp_path / "out.h5").exists()
    assert len(make(tmp_path, "folder", photos, "--split", "train", "--skip-corrupt", "-q").images) == 8
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sslbd data: warning: left out 25 corrupt images"
    assert lines[20] == "sslbd data: warning: left out train/cat/x19.png: not an image of a known format"
    assert lines[21:] == ["sslbd data: warning: left out 5 more"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder"], "folder needs SOURCE: what to read"),
        (["folder", "PHOTOS"], "PHOTOS: choose one of its splits with --split: test, train"),
        (["folder", "PHOTOS", "--split", "val"], "PHOTOS: no split 'val'; it has test, train"),
        (["folder", "PHOTOS/train", "--split", "train"], "PHOTOS/train: --split train: there are no splits here"),
        (
            ["folder", "PHOTOS", "--count", "3"],
            "folder takes no --count; it takes SOURCE, --split, --skip-corrupt, --no-exif, --max-pixels, --size",
        ),
        (["folder", "absent.zip"], "absent.zip: No such file or directory"),
        (["shapes", "PHOTOS"], "shapes takes no SOURCE"),
        (["shapes", "--root", "."], "shapes takes no --root"),
        (["npz", "PHOTOS"], "PHOTOS: not a regular file"),
        (["cifar10", "--split", "train"], "cifar10 needs --root"),
        (["cifar10", "--root", "PHOTOS", "--split", "train"], "PHOTOS: no complete CIFAR10 in this folder"),
        (["folders"], "name folders: unknown source 'folders': did you mean 'folder'?"),
        (["shapes", "--count", "0"], "Invalid value for '--count'"),
        (["shapes", "--size", "3"], "Invalid value for '--size'"),
        (["shapes", "--count", "1000000000", "--size", "256"], "shapes: its images do not fit in memory"),
    ],
)
def test_a_mistake_is_one_line(
    photos: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", *(word.replace("PHOTOS", str(photos)) for word in words), "-o", str(photos / "out.h5")]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"sslbd data: {message.replace('PHOTOS', str(photos))}")
    assert said.out == "" and not (photos / "out.h5").exists()


@pytest.mark.parametrize("word", ["help", "--help"])
def test_help_lists_the_sources(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", word]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for row in plugin.listing("source").values():
        assert f"{row.name} {row.summary}" in text


def test_help_of_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "imagenette:help"]) == 0
    assert "variant=full" in capsys.readouterr().out


def test_standard_output_carries_the_artefact_alone(tmp_path: Path, photos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = [sys.executable, "-c", "import sslbd_cli.main as m; m.entry()", "data"]
        piped = subprocess.run([*words, "folder", str(photos), "--split", "train"], capture_output=True, check=True)
    assert run(["data", "folder", str(photos), "--split", "train", "-o", str(tmp_path / "out.h5")]) == 0
    assert piped.stdout == (tmp_path / "out.h5").read_bytes()
    assert piped.stderr.decode() == "sslbd data: 8 images of 8x8, 2 classes of 4\n"


def test_data_does_without_torch(photos: Path) -> None:
    code = f"""
import sys
from sslbd_cli.main import run
assert run(["data", "folder", {str(photos)!r}, "--split", "train", "--limit", "2", "-q", "-o", "/dev/null"]) == 0
assert run(["data", "shapes", "--count", "10", "-q", "-o", "/dev/null"]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_part_that_is_none_is_refused_before_anything_is_drawn(sslbd, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "draw", lambda *given: pytest.fail("drawn"))
    status, _, err = sslbd("data", "shapes", "--part", "0/3", "-o", tmp_path / "d.h5")
    assert status == 2 and "--part 0/3: expected a part such as 1/5" in err
