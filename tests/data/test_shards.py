"""Files of a dataset in several files: patterns, folders, lists, and addresses on a small hub on loopback."""

import huggingface_hub.constants
import pytest

from small_hub import COMMIT, serve
from sslbd_cli.data.shards import expand, find_shards
from sslbd_cli.errors import InputError


def test_braces_expand_as_in_a_shell():
    assert expand("a-{008..011}.tar") == [f"a-{number:03}.tar" for number in range(8, 12)]
    assert expand("{8..11}{a,b}") == [f"{number}{letter}" for number in range(8, 12) for letter in "ab"]
    assert expand("{2..0}x") == ["2x", "1x", "0x"] and expand("plain") == ["plain"]
    for bomb in ("{0..99999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(InputError, match="more than 100000"):
            expand(bomb)


def test_files_are_found_by_pattern_folder_and_list(tmp_path):
    for number in range(3):
        (tmp_path / f"t-{number}.tar").touch()
    (tmp_path / "other.json").touch()
    (tmp_path / "list.txt").write_text("t-{2..1}.tar\n\nt-0.tar\n")
    expected = {"": "012", "/t-{0..1}.tar": "01", "/t-*.tar": "012", "/list.txt": "210", "/t-1.tar": "1"}
    for text, numbers in expected.items():
        shards = find_shards(f"{tmp_path}{text}", (".tar",), print)
        assert [shard.name for shard in shards] == [f"t-{number}.tar" for number in numbers]
        assert all(shard.path.is_file() for shard in shards)
    for text, problem in (
        ("/t-{0..4}.tar", r"t-3\.tar: no such file \(and 1 more\)"),
        ("/x-*.tar", "there is no file"),
    ):
        with pytest.raises(InputError, match=problem):
            find_shards(f"{tmp_path}{text}", (".tar",), print)


def test_files_come_from_a_dataset_repository(tmp_path, monkeypatch):
    known, said = huggingface_hub.constants, []
    with serve() as hub:
        monkeypatch.setattr(known, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(known, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(known, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(known, "HF_HUB_OFFLINE", False)
        repo = hub.add("them/photos", **{"t-0__tar": b"zero", "t-1__tar": b"one", "run__py": b"evil"})
        repo.commits[COMMIT]["deep/t-2.tar"] = b"two"
        for pattern, names in (("", ["deep/t-2.tar", "t-0.tar", "t-1.tar"]), ("/t-{0..1}.tar", ["t-0.tar", "t-1.tar"]),
                               ("/deep", ["deep/t-2.tar"]), ("@main/t-*.tar", ["t-0.tar", "t-1.tar"])):  # fmt: skip
            shards = find_shards(f"hf://datasets/them/photos{pattern}", (".tar",), said.append)
            assert [shard.name for shard in shards] == names
        assert shards[0].path.read_bytes() == b"zero"
        assert said[1] == f"reading 2 of the files of hf://datasets/them/photos@{COMMIT}"
        assert not any("run.py" in request for request in hub.requests)
        for address, problem in (
            ("hf://datasets/them/photos/x.tar", "has no such file; it has deep/t-2.tar, t-0.tar, t-1.tar"),
            ("hf://datasets/them/none", "there is no such dataset repository"),
            ("hf://them/photos/t-0.tar", "expected hf://datasets/OWNER/NAME"),
        ):
            with pytest.raises(InputError, match=problem):
                find_shards(address, (".tar",), print)
