"""Folders and archives: the same images in any container are the same dataset, and hostile ones are refused."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.data.layouts import Arrangement, arrange
from sslbd_cli.data.source import Made, SourceWish
from sslbd_cli.data.sources.folder import Folder
from sslbd_cli.errors import InputError

Tree = dict[str, bytes]


def png(shade: int, size: tuple[int, int] = (6, 6)) -> bytes:
    rng = np.random.default_rng(shade)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(out, "png")
    return out.getvalue()


TREE: Tree = {
    f"{split}/{name}/{number}.png": png(hash_)
    for hash_, (split, name, number) in enumerate(
        [("train", "cat", 2), ("train", "cat", 10), ("train", "dog", 1), ("train", "emu", 1), ("test", "dog", 5)]
    )
}
FLAT: Tree = {name.removeprefix("train/"): data for name, data in TREE.items() if name.startswith("train/")}
JUNK: Tree = {
    "train/cat/.hidden.png": b"x",
    "__MACOSX/train/cat/._2.png": b"x",
    "train/cat/Thumbs.db": b"x",
    ".git/train/cat/3.png": b"x",
    "README.md": b"x",
}


def pack(tree: Tree, path: Path, top: str = "") -> Path:
    """Write a tree as the container that the suffix names, in the order given."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in tree.items():
                archive.writestr(top + name, data)
    elif ".tar" in path.suffixes or path.suffix == ".tgz":
        mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
        with tarfile.open(path, mode) as archive:
            for name, data in tree.items():
                member = tarfile.TarInfo(top + name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in tree.items():
            (path / top / name).parent.mkdir(parents=True, exist_ok=True)
            (path / top / name).write_bytes(data)
    return path


def read(path: Path, **wish: object) -> Made:
    return Folder()(SourceWish(path=path, **wish))


CONTAINERS = ["plain", "a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("top", ["", "./", "wrapped-1.0/"])
def test_every_container_gives_the_same_content(tmp_path: Path, container: str, top: str) -> None:
    expected = read(pack(TREE, tmp_path / "expected"), split="train").dataset
    mixed = dict(reversed([*TREE.items(), *JUNK.items()])) if top != "wrapped-1.0/" else TREE
    found = read(pack(mixed, tmp_path / container, top), split="train").dataset
    assert found.sha256 == expected.sha256
    assert found.classes == ("cat", "dog", "emu")
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1, 2]
    assert found.ids is not None and found.ids.tolist() == [0, 1, 2, 3]
    first = np.asarray(Image.open(io.BytesIO(TREE["train/cat/10.png"]))).transpose(2, 0, 1)
    assert np.array_equal(found.images[0], first)


@pytest.mark.parametrize("container", ["plain", "a.zip", "a.tar.xz"])
def test_class_folders_need_no_split(tmp_path: Path, container: str) -> None:
    expected = read(pack(TREE, tmp_path / "expected"), split="train").dataset
    assert read(pack(FLAT, tmp_path / container)).dataset.sha256 == expected.sha256
    wrapped = tmp_path / "again"
    wrapped.mkdir()
    assert read(pack(FLAT, wrapped / container, "top/")).dataset.sha256 == expected.sha256


def test_classes_are_numbered_alike_in_every_split(tmp_path: Path) -> None:
    found = read(pack(TREE, tmp_path / "a.zip"), split="test").dataset
    assert found.classes == ("cat", "dog", "emu")
    assert found.labels is not None and found.labels.tolist() == [1]


def test_an_empty_class_folder_is_fine(tmp_path: Path) -> None:
    (pack(FLAT, tmp_path / "plain") / "ant").mkdir()
    assert read(tmp_path / "plain").dataset.classes == ("cat", "dog", "emu")


@pytest.mark.parametrize("container", ["plain", "a.zip", "a.tar.gz"])
@pytest.mark.parametrize(
    ("tree", "split", "message"),
    [
        (TREE, None, "choose one of its splits with --split: test, train"),
        (TREE, "val", "no split 'val'; it has test, train"),
        (FLAT, "train", "--split train: there are no splits here"),
        (TREE | {f"{n}.png": png(n) for n in range(9)}, "4", "no split '4'; it has test, train"),
        ({**FLAT, "cat/more/1.png": png(1)}, None, "cannot tell the layout from cat/10.png and cat/more/1.png"),
        ({"cat/1.png": png(1), "2.png": png(2), "3.png": png(3)}, None, "cannot tell the layout from 2.png and cat/1"),
        ({"a/b/c/1.png": png(1), "b/b/c/1.png": png(2)}, None, "cannot tell the layout"),
        ({"notes/README.md": b"x"}, None, "no images here"),
    ],
)
def test_layouts_and_splits_that_do_not_fit(
    tmp_path: Path, container: str, tree: Tree, split: str | None, message: str
) -> None:
    path = pack(tree, tmp_path / container)
    with pytest.raises(InputError) as caught:
        read(path, split=split)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_single_split_may_be_named_or_not() -> None:
    paths = {("train", "cat", "1.png"), ("train", "dog", "1.png")}
    assert arrange(paths, None) == arrange(paths, "train") == Arrangement(tuple(sorted(paths)), ("cat", "dog"), (0, 1))
    deep = {("top", *path) for path in paths}
    assert arrange(deep, None) == arrange(deep, "train") == Arrangement(tuple(sorted(deep)), ("cat", "dog"), (0, 1))


def laid(names: str, split: str | None = None) -> tuple[str, str, list[int] | None, str]:
    """Return the names of an arrangement: images, classes, labels, and what is left out."""
    layout = arrange({tuple(name.split("/")) for name in names.split()}, split)
    paths, stray = (" ".join(map("/".join, rows)) for rows in (layout.paths, layout.stray))
    return paths, " ".join(layout.classes), layout.labels and list(layout.labels), stray


def test_images_in_no_class_folder_have_no_labels() -> None:
    assert laid("b.png a.png") == ("a.png b.png", "", None, "")
    assert laid("new/b.png new/a.png old/cat/1.png", "new") == ("new/a.png new/b.png", "", None, "")
    assert laid("top/new/1.png top/old/1.png", "new") == ("top/new/1.png", "", None, "")
    assert laid("new/1.png old/2.png") == ("new/1.png old/2.png", "new old", [0, 1], "")


def test_a_folder_of_images_below_each_class_is_no_class() -> None:
    tiny = "tiny/train/n1/images/a.png tiny/train/n2/images/b.png tiny/val/images/c.png tiny/test/images/d.png"
    train = "tiny/train/n1/images/a.png tiny/train/n2/images/b.png"
    assert laid(tiny, "train") == (train, "n1 n2", [0, 1], "")
    assert laid(tiny, "val") == ("tiny/val/images/c.png", "", None, "")
    assert laid("n1/images/a.png n2/images/b.png")[1:3] == ("n1 n2", [0, 1])
    assert laid("images/a.png images/b.png")[1:3] == ("", None)
    assert laid("images/a.png dogs/b.png")[1:3] == ("dogs images", [0, 1])
    with pytest.raises(InputError, match="choose one of its splits with --split: test, train, val"):
        laid(tiny)


def test_only_the_layout_of_the_split_is_judged_and_a_few_strays_are_left_out() -> None:
    assert laid("cover.png train/cat/1.png odd/a/b/c/1.png test/dog/2.png", "train")[:3] == (
        "train/cat/1.png", "cat dog", [0])  # fmt: skip
    assert laid("cover.png cat/1.png dog/1.png") == ("cat/1.png dog/1.png", "cat dog", [0, 1], "cover.png")
    assert laid("cover.png train/cat/1.png") == ("train/cat/1.png", "cat", [0], "cover.png")
    assert laid("train/x.png train/cat/1.png test/dog/1.png", "train")[2:] == ([0], "train/x.png")


def test_strays_are_named_and_unlabelled_images_become_a_dataset(tmp_path: Path) -> None:
    made = read(pack({**FLAT, "stray.png": png(1)}, tmp_path / "stray"))
    assert made.doubts == ("left out 1 image beside the folders: stray.png",)
    assert len(made.dataset.images) == 4
    bare = read(pack({"b.png": png(1), "a.png": png(2)}, tmp_path / "bare.zip")).dataset
    assert (bare.labels, bare.classes, len(bare.images)) == (None, (), 2)


@pytest.mark.parametrize("container", CONTAINERS[1:])
def test_archives_cut_anywhere_are_refused(tmp_path: Path, container: str) -> None:
    data = pack(FLAT, tmp_path / container).read_bytes()
    # the end of a plain tar is padding: what follows its first block of zeros says nothing
    end = data.rindex(b"IEND") + 512 if container == "a.tar" else len(data)
    cut = tmp_path / f"cut-{container}"
    for length in [*range(0, end, max(1, end // 40)), *(at for at in range(0, end, 512) if container == "a.tar")]:
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match="cut-a"):
            read(cut)


@pytest.mark.parametrize("container", CONTAINERS[1:])
def test_flipped_bytes_are_refused_or_read_whole(tmp_path: Path, container: str) -> None:
    whole = pack(FLAT, tmp_path / container)
    data, count = whole.read_bytes(), len(read(whole).dataset.images)
    rng = np.random.default_rng(0)
    bad = tmp_path / f"bad-{container}"
    for at in rng.integers(0, len(data), 150):
        bad.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :])
        try:
            assert 0 < len(read(bad).dataset.images) <= count
        except InputError as error:
            assert str(error).startswith(str(bad))


@pytest.mark.parametrize(
    "data", [b"", b"not an archive" * 100, b"PK\3\4 no", b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh9", bytes(2048)]
)
def test_foreign_and_empty_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip: "):
        read(tmp_path / "a.zip")


def test_missing_source_and_devices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        read(tmp_path / "fifo")


def test_links_and_climbing_paths_in_archives_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in [
            ("cat/link.png", tarfile.SYMTYPE),
            ("cat/hard.png", tarfile.LNKTYPE),
            ("cat/dev.png", tarfile.CHRTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        for name in ("cat/1.png", "../dog/1.png", "cat/../../dog/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            archive.addfile(member, io.BytesIO(png(1)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
        archive.writestr("cat/1.png", png(1))
        archive.writestr("../dog/1.png", png(1))
    before = sorted(tmp_path.iterdir())
    for name in ("a.tar", "a.zip"):
        found = read(tmp_path / name).dataset
        assert (len(found.images), found.classes) == (1, ("cat",))
    assert sorted(tmp_path.iterdir()) == before


def linked(path: Path, links: dict[str, tuple[bytes, str]]) -> Path:
    """Write two images and links (kind, target) as a tar; a zip holds the symbolic ones only."""
    if path.suffix == ".zip":
        pack({"store/.blobs/1": png(1), "cat/2.png": png(2)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            for name, (kind, target) in links.items():
                if kind == tarfile.SYMTYPE:
                    link = zipfile.ZipInfo(name)
                    link.external_attr = 0o120777 << 16
                    archive.writestr(link, target)
        return path
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as archive:
        for name, (kind, target) in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
        for name, data in {"store/.blobs/1": png(1), "cat/2.png": png(2)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("container", ["a.tar", "a.tar.xz", "a.zip"])
def test_links_inside_an_archive_are_followed_and_others_counted(tmp_path: Path, container: str) -> None:
    sym, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    links = {"cat/1.png": (sym, "../store/.blobs/1"), "cat/3.png": (sym, "1.png"), "dog": (sym, "./cat"),
             "cat/out.png": (sym, "../../secret.png"), "cat/gone.png": (sym, "no.png"), "cat/me.png": (sym, "me.png"),
             "emu/4.png": (hard, "cat/2.png")}  # fmt: skip
    made = read(linked(tmp_path / container, links))
    names = [f"{folder}/{number}.png" for folder in ("cat", "dog") for number in (1, 2, 3)]
    shades = [1, 2, 1, 1, 2, 1]
    if container != "a.zip":
        names, shades = [*names, "emu/4.png"], [*shades, 2]
    expected = pack({name: png(shade) for name, shade in zip(names, shades, strict=True)}, tmp_path / "plain")
    assert made.dataset.sha256 == read(expected).dataset.sha256
    assert made.doubts == ("left out 3 links to nothing in the source, pipes and devices counted as such",)


def test_a_link_may_lead_to_another_split_of_a_compressed_archive(tmp_path: Path) -> None:
    path = linked(tmp_path / "a.tar.xz", {"train/cat/7.png": (tarfile.SYMTYPE, "../../cat/2.png")})
    assert len(read(path, split="train").dataset.images) == 1


def test_links_that_multiply_files_are_a_bomb(tmp_path: Path) -> None:
    links = {f"l{number}": (tarfile.SYMTYPE, "cat") for number in range(100)}
    with pytest.raises(InputError, match="its links give each file more than 20 paths: taken for a bomb"):
        read(linked(tmp_path / "a.tar", links))


@pytest.mark.parametrize("container", ["plain", "a.zip", "a.tar.gz"])
def test_suffixes_that_are_not_read_are_counted(tmp_path: Path, container: str) -> None:
    tree = FLAT | {"cat/5.jfif": jpeg(), "cat/6.avif": b"x", "dog/7.AVIF": b"x", "dog/8.foo": b"x", "dog/README": b"x"}
    made = read(pack(tree, tmp_path / container), size=6)
    assert len(made.dataset.images) == 5
    assert made.doubts == ("left out 3 files of other suffixes than images that are read: 2 .avif, 1 .foo",)
    with pytest.raises(InputError, match="no images here; left out 1 file of other suffixes"):
        read(pack({"cat/1.avif": b"x"}, tmp_path / f"none-{container}"))


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 6)).save(out, "jpeg")
    return out.getvalue()


def test_links_in_the_users_own_folder_are_followed_and_pipes_are_not(tmp_path: Path) -> None:
    pack(FLAT, tmp_path / "store")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "cat").symlink_to(tmp_path / "store" / "cat")
    os.mkfifo(tmp_path / "store" / "cat" / "pipe.png")
    (tmp_path / "view" / "dog").mkdir()
    (tmp_path / "view" / "dog" / "gone.png").symlink_to(tmp_path / "absent.png")
    made = read(tmp_path / "view")
    assert len(made.dataset.images) == 2 and made.doubts[0].startswith("left out 2 links to nothing")
    (tmp_path / "view" / "loop").symlink_to(tmp_path / "view")
    with pytest.raises(InputError, match="cannot tell the layout"):
        read(tmp_path / "view")


@pytest.mark.parametrize("container", ["a.zip", "a.tar.gz"])
def test_decompression_bombs_are_refused(tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslbd_cli.data.archives.unpacking_limit", lambda packed: 1 << 20)
    bomb = tmp_path / container
    data = b"P6 1100 1100 255\n" + bytes(3 * 1100 * 1100)
    if container == "a.zip":
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/1.ppm", data)
    else:
        pack({"cat/1.ppm": data}, bomb)
    with pytest.raises(InputError, match="bomb"):
        read(bomb)


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(pack(FLAT, tmp_path / "a.zip").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1  # the flag of the first entry of the central directory
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("container", ["plain", "a.zip", "a.tar", "a.tar.xz"])
def test_a_corrupt_image_is_named_or_skipped(tmp_path: Path, container: str) -> None:
    tree = {**FLAT, "cat/3.png": png(3)[:60], "emu/9.png": b"GIF89a"}
    path = pack(tree, tmp_path / container)
    with pytest.raises(InputError, match=r"cat/3\.png: corrupt image: .*--skip-corrupt"):
        read(path)
    made = read(path, skip_corrupt=True)
    assert [name for name, _ in made.skipped] == ["cat/3.png", "emu/9.png"]
    clean = read(pack(FLAT, tmp_path / "clean")).dataset
    assert np.array_equal(made.dataset.images, clean.images)
    assert made.dataset.ids is not None and made.dataset.ids.tolist() == [0, 1, 3, 4]


def test_nothing_but_corrupt_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all of its images are corrupt, 1 in all"):
        read(pack({"cat/1.png": b""}, tmp_path / "a.zip"), skip_corrupt=True)


def test_sizes_must_agree_or_be_given(tmp_path: Path) -> None:
    path = pack({**FLAT, "emu/2.png": png(8, (7, 9))}, tmp_path / "plain")
    with pytest.raises(InputError, match=r"emu/2\.png: 9x7 pixels, but cat/10\.png has 6x6; give --size"):
        read(path)
    assert read(path, size=5).dataset.images.shape == (5, 3, 5, 5)


def test_images_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smaller than 4 pixels"):
        read(pack({"cat/1.png": png(1, (3, 3))}, tmp_path / "plain"))


def test_digest_of_a_folder_follows_names_labels_and_bytes(tmp_path: Path) -> None:
    first = read(pack(FLAT, tmp_path / "one")).digest
    assert first == read(pack(dict(reversed(FLAT.items())), tmp_path / "two")).digest
    renamed = {name.replace("10", "11"): data for name, data in FLAT.items()}
    assert first != read(pack(renamed, tmp_path / "three")).digest
    assert first != read(pack({**FLAT, "emu/1.png": png(77)}, tmp_path / "four")).digest
    assert read(pack(FLAT, tmp_path / "a.zip")).digest is None
