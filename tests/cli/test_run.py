"""What a run signs: every choice, no place and no time."""

import dataclasses
import os
import re

import pytest

from micro import make_dataset, make_encoder
from sslbd_cli import __version__
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Encoder


@pytest.fixture
def path(tmp_path):
    kinds.write(make_dataset(), str(tmp_path / "a.h5"))
    return tmp_path / "a.h5"


def entry(path, kind=Dataset):
    return kinds.read(str(path), kind).history[-1]


def test_the_history_names_every_choice_with_its_default(sslbd, path, tmp_path):
    assert sslbd("poison", path, "--target", "1", "-q", "-o", tmp_path / "b.h5")[0] == 0
    assert entry(tmp_path / "b.h5") == {
        "command": "poison",
        "version": __version__,
        "args": {
            "--class-rate": 0.5,
            "--craft": "stamp",
            "--mode": "replace",
            "--seed": 0,
            "--select": "label",
            "--target": "1",
            "--trigger": "patch:size=0.2,where=br,margin=1,opacity=1.0,train_low=0.25,train_high=0.75,"
            "test_low=0.1,test_high=0.9,fill=blocks,blocks=4,seed=10",
        },
        "inputs": [{"option": "INPUT", "kind": "dataset", "sha256": make_dataset().sha256}],
    }


def test_zero_is_a_choice_and_no_is_none(sslbd, path, tmp_path):
    words = ["--arch", "tiny:width=4", "--epochs", 1, "--batch", 20, "--device", "cpu", "--precision", "fp32"]
    assert sslbd("pretrain", path, *words, "--weight-decay", 0, "--warmup", 0, "-q", "-o", tmp_path / "e")[0] == 0
    args = entry(tmp_path / "e", Encoder)["args"]
    assert (args["--weight-decay"], args["--warmup"], args["--blur"], args["--seed"]) == (0, 0, 0, 0)
    assert args["--method"].startswith("simclr:temperature=") and args["--precision"] == "fp32"
    assert not {"--compile", "--deterministic", "--resume", "--checkpoint", "--device", "--output", "--quiet"} & set(
        args
    )
    assert entry(tmp_path / "e", Encoder)["device"] == "cpu"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", entry(tmp_path / "e", Encoder)["torch"])


def test_equal_runs_in_other_places_at_other_times_give_equal_bytes(sslbd, path, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other name.h5").write_bytes(path.read_bytes())
    os.utime(elsewhere / "other name.h5", (0, 0))
    sslbd("poison", path, "--target", "1", "-o", tmp_path / "b.h5")
    monkeypatch.chdir(elsewhere)
    sslbd("poison", "other name.h5", "--target", "1", "-q", "-v", "-o", "c.h5")
    assert (tmp_path / "b.h5").read_bytes() == (elsewhere / "c.h5").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "b.h5").read_bytes()


def test_the_inputs_history_goes_on_and_each_command_stands_once(sslbd, path, tmp_path):
    first = {"command": "data", "version": "0", "args": {}, "inputs": []}
    row = {"option": "INPUT", "kind": "dataset", "sha256": "0" * 64}
    second = {"command": "pretrain", "version": "0", "args": {}, "inputs": [row]}
    side = dataclasses.replace(make_dataset(seed=2), history=(first,))
    kinds.write(side, str(tmp_path / "side.h5"))
    kinds.write(dataclasses.replace(make_encoder(), history=(first, second)), str(tmp_path / "e"))
    words = ["--data", tmp_path / "side.h5", "--device", "cpu", "-q"]
    assert sslbd("embed", tmp_path / "e", *words, "-o", tmp_path / "f.h5")[0] == 0
    history = kinds.read(str(tmp_path / "f.h5"), kinds.Features).history
    assert history[:2] == (first, second) and history[2]["command"] == "embed"
    assert history[2]["inputs"] == [
        {"option": "INPUT", "kind": "encoder", "sha256": make_encoder().sha256},
        {"option": "--data", "kind": "dataset", "sha256": side.sha256, "made_by": 0},
    ]


def test_auto_says_what_it_chose_and_quiet_says_nothing(sslbd, path, tmp_path):
    kinds.write(make_encoder(), str(tmp_path / "e"))
    words = ["embed", tmp_path / "e", "--data", path, "-o", tmp_path / "f.h5"]
    assert re.fullmatch(r"sslbd embed: device \w+(:\d)?, precision (fp32|bf16)\n", sslbd(*words)[2])
    assert sslbd(*words, "-q")[1:] == ("", "")
    assert sslbd(*words, "-v", "--device", "cpu", "--precision", "fp32")[2] == f"sslbd embed: wrote {tmp_path}/f.h5\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(sslbd, tmp_path):
    for output, problem in ((tmp_path / "no" / "a", "no such folder"), (tmp_path, "is a folder")):
        status, _, err = sslbd("data", "--count", 10**9, "-o", output)
        assert (status, err) == (2, f"sslbd data: --output {output}: {problem}; name a file\n")


def test_an_output_of_a_bad_name_or_in_a_loop_of_links_is_refused_before_the_work(sslbd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "x" * 256: "File name too long; name another file",
        "loop": "Too many levels of symbolic links; name another file",
        "loop/x": "Too many levels of symbolic links; name another file",
    }
    for name, problem in cases.items():
        status, _, err = sslbd("data", "shapes", "--count", "1", "-o", name)
        assert (status, err) == (2, f"sslbd data: --output {name}: {problem}\n")
    assert sslbd("data", "shapes", "--count", "1", "-o", "x" * 255)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "x" * 255]


def test_a_removed_working_directory_is_named(sslbd, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = sslbd("data", "shapes", "--count", "1", "-o", "x")
    assert status == 2 and err.endswith("the working directory was removed; change to another one\n")


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "a.h5", "--epochs", 1, "-o", "a.h5"),
        ("pretrain", "a.h5", "--epochs", 1, "--monitor", "b.h5", "-o", "b.h5"),
        ("embed", "e", "--data", "a.h5", "-o", "./a.h5"),
        ("embed", "e", "--data", "a.h5", "-o", "e"),
        ("detect", "e", "--method", "random", "--data", "a.h5", "-o", "a.h5"),
        ("detect", "e", "--method", "random", "--data", "a.h5", "--sarif", "e"),
        ("detect", "e", "--method", "dede", "--data", "a.h5", "--aux", "b.h5", "--save-guard", "b.h5"),
        ("probe", "e", "--train", "a.h5", "--test", "b.h5", "-o", "b.h5"),
        ("poison", "b.h5", "--select", "kmeans", "--encoder", "e", "-o", "e"),
        ("report", "a.h5", "b.h5", "-o", "b.h5"),
    ],
    ids=lambda words: f"{words[0]} {words[-2]} {words[-1]}",
)
def test_an_output_never_replaces_an_input(sslbd, path, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.h5").write_bytes(path.read_bytes())
    kinds.write(make_encoder(), "e")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    status, out, err = sslbd(*words)
    assert (status, out) == (2, "") and "is read from there; name another file" in err and err.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_is_worked_on_may_be_replaced_by_its_like(sslbd, path):
    assert sslbd("poison", path, "--target", "1", "-q", "-o", path)[0] == 0
    assert entry(path)["command"] == "poison"
