"""WebDataset shards: samples by their names, labels as numbers or names, and what is missing named."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.artefacts.captions import decode
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.convert import images
from sslbd_cli.core.watch import unwatched
from sslbd_cli.data.source import SourceWish
from sslbd_cli.data.sources.webdataset import Webdataset
from sslbd_cli.errors import InputError


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 9, 9)).save(out, "png")
    return out.getvalue()


def shard(path: Path, **files: bytes) -> Path:
    """Write a tar, compressed if its suffix says so. In names, __ stands for a dot."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path, source: Webdataset | None = None, **wish: object) -> Dataset:
    return (source or Webdataset())(SourceWish(path=path, **wish)).dataset  # type: ignore[arg-type]


def test_samples_of_all_shards_in_order(tmp_path):
    shard(tmp_path / "t-0.tar", b__PNG=png(1), b__cls=b"2", b__txt="a café".encode(), b__json=b"{}",
          a__cls=b"0", a__png=png(2),
          a__txt=b"two")  # fmt: skip
    shard(tmp_path / "t-1.tar.gz", b__png=png(3), b__cls=b"1\n", b__txt=b"three")
    found = read(tmp_path, captions=True)
    assert found.images[:, 0, 0, 0].tolist() == [1, 2, 3] and found.labels.tolist() == [2, 0, 1]
    assert found.classes == ("0", "1", "2") and decode(found.captions) == ["a café", "two", "three"]
    (tmp_path / "classnames.txt").write_text("cat\ndog\nemu\nfox\n")
    assert read(tmp_path).classes == ("cat", "dog", "emu", "fox")
    assert read(tmp_path / "t-0.tar", Webdataset(label="none")).labels is None
    assert read(tmp_path / "t-0.tar", Webdataset(label="txt")).classes == ("a café", "two")


def test_what_is_missing_is_named(tmp_path):
    for files, source, problem in (
        ({"a__png": png(1), "b__png": png(1), "a__cls": b"1"}, Webdataset(), r"x\.tar: b: has no label, unlike others"),
        ({"a__cls": b"1"}, Webdataset(), r"x\.tar: a: expected one image, got cls; webdataset:image=EXTENSION chooses"),
        ({"a__png": png(1), "a__seg__png": png(2)}, Webdataset(), "expected one image, got png, seg.png"),
        ({"a__png": png(1)}, Webdataset(image="jpg"), "expected one image, got png"),
        ({"a__png": png(1), "a__cls": b"-1"}, Webdataset(), "label -1 is not a number"),
        ({"a__png": png(1), "a__cls": b"1" * 70000}, Webdataset(), "its cls has 70000 bytes"),
        ({}, Webdataset(), "no samples here"),
    ):
        with pytest.raises(InputError, match=problem):
            read(shard(tmp_path / "x.tar", **files), source)
    for text, problem in ((b"", "is empty"), (None, "is missing")):
        files = {"a__png": png(1)} | ({} if text is None else {"a__txt": text})
        with pytest.raises(InputError, match=rf"a: the caption \(txt\) {problem}"):
            read(shard(tmp_path / "x.tar", **files), captions=True)
    two = shard(tmp_path / "x.tar", a__png=png(1), a__seg__png=png(2))
    assert read(two, Webdataset(image="seg.png")).images[0, 0, 0, 0] == 2


def test_the_library_reads_what_is_exported(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), np.uint8)
    images.export(Dataset(images=pixels, labels=np.array([1, 0, 1]), classes=("a", "b")), "webdataset",
                  str(tmp_path / "out"), unwatched)  # fmt: skip
    samples = list(webdataset.WebDataset(str(tmp_path / "out/000000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["cls"] for sample in samples] == [1, 0, 1]
    assert all(np.array_equal(s["png"], image.transpose(1, 2, 0)) for s, image in zip(samples, pixels, strict=True))
