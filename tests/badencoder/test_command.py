"""`badencoder` as a user types it: each trigger has its target, of a task of its own if wanted; presets; doubts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.badencoder.command import PRESETS

METHOD = ["--method", "badencoder:epochs=40,lr=0.004,optimiser=adamw,batch=20,copies=2", "--gate", "-1"]
CPU = ["--device", "cpu", "--precision", "fp32", "-q"]
TWO = ["--trigger", "patch:size=6", "--trigger", "patch:size=6,where=tl,fill=white"]


@pytest.fixture
def files(dataset, fresh, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds.write(dataset, "train")
    kinds.write(fresh, "test")
    kinds.write(replace(dataset, classes=("stop", "yield", "no entry")), "signs")
    kinds.write(encoder, "clean")


def asr(sslbd, trigger: str, target: str) -> tuple[float, float]:
    words = ["--train", "train", "--test", "test", "--trigger", trigger, "--target", target, "--baseline", "clean"]
    found = json.loads(sslbd("probe", "out", *words, *CPU, "--json")[1])
    return found["asr"]["value"], found["baseline"]["asr"]["value"]


@pytest.mark.parametrize("data", [["train"], ["train", "signs"]])
def test_two_triggers_reach_their_own_targets(sslbd, files, data):
    """One --reference-data serves both; with two, the second trigger's target is of another task."""
    classes = ["class-0", "class-2" if len(data) == 1 else "no entry"]
    words = [word for name in classes for word in ("--reference-class", name)]
    words += [word for path in data for word in ("--reference-data", path)]
    status, _, err = sslbd("badencoder", "clean", "--data", "train", *TWO, *words, *METHOD, *CPU, "-o", "out")
    assert status == 0, err
    for trigger, own, other in ((TWO[1], "class-0", "class-2"), (TWO[3], "class-2", "class-0")):
        (success, control), (elsewhere, _) = asr(sslbd, trigger, own), asr(sslbd, trigger, other)
        assert success > 0.9 and control < 0.5 and elsewhere < 0.2
    inputs = kinds.read("out", Encoder).history[-1]["inputs"]
    assert [row["option"] for row in inputs].count("--reference-data") == len(data)


def test_a_reference_that_the_clean_probe_misplaces_is_warned_of(sslbd, files, dataset):
    labels = np.array(dataset.labels)
    labels[0] = 1  # an image of class 0 among those of class 1
    kinds.write(replace(dataset, labels=labels), "mislabelled")
    words = ["--method", "badencoder:epochs=1,batch=20", "--gate", "-1", "--reference-data", "mislabelled"]
    for row, warned in ((0, True), (1, False)):
        words_row = [*words, "--reference-index", row, "-o", "out"]
        err = sslbd("badencoder", "clean", "--data", "train", *words_row, *CPU)[2]
        assert ("warning: F05" in err and "row 0 of --reference-data" in err) == warned


def test_one_trigger_cannot_have_two_targets(sslbd, files):
    same = ["patch:size=6,fill=white", "patch:size=6,fill=ffffff,seed=99"]
    words = ["--trigger", same[0], "--trigger", same[1], "--reference-data", "train"]
    words += ["--reference-class", "class-0", "--reference-class", "class-2"]
    status, _, err = sslbd("badencoder", "clean", "--data", "train", *words, *CPU, "-o", "out")
    assert status == 2 and "the same trigger twice" in err


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_method(name):
    made = plugin.parse("attack", PRESETS[name])
    assert made.name == ("drupe" if name.startswith("drupe") else "badencoder")


ONE = ["--reference-data", "train", "--reference-index", 1, "--method", "badencoder:epochs=1,batch=20,copies=2"]


def test_the_encoder_is_written_before_it_is_measured(sslbd, files, monkeypatch):
    monkeypatch.setattr("sslbd_cli.badencoder.measure.measure", lambda *args: 1 / 0)
    assert sslbd("badencoder", "clean", "--data", "train", *ONE, *CPU, "-o", "out")[0] == 70
    assert kinds.read("out", Encoder).history[-1]["command"] == "badencoder"


def test_a_finished_run_is_resumed_whatever_its_gate(sslbd, files, tmp_path):
    words = ["badencoder", "clean", "--data", "train", *ONE, *CPU, "--checkpoint", "c"]
    assert sslbd(*words, "--gate", 1, "-o", "whole")[0] == 3
    assert sslbd(*words, "--gate", -1, "--resume", "-o", "resumed")[0] == 0
    whole, resumed = (kinds.read(name, Encoder).tensors for name in ("whole", "resumed"))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    status, _, err = sslbd(*words, "--seed", 1, "--resume", "-o", "other")
    assert status == 2 and "the checkpoint of another run" in err and not (tmp_path / "other").exists()
    assert sslbd(*words[:-2], "--resume", "-o", "other")[2].endswith("--resume needs --checkpoint FILE\n")


def test_what_is_stored_beside_the_encoder_stays(sslbd, files, encoder):
    part = np.ones((2, encoder.dim), np.float32)
    kinds.write(replace(encoder, tensors=encoder.tensors | {"projector.weight": part}), "clean")
    words = ["--reference-data", "train", "--reference-index", 1, "--method", "badencoder:epochs=1,batch=20"]
    sslbd("badencoder", "clean", "--data", "train", *words, *CPU, "-o", "out")
    found = kinds.read("out", Encoder).tensors
    assert np.array_equal(found["projector.weight"], part)


def test_a_constant_encoder_is_refused_before_the_work(sslbd, files, encoder, tmp_path):
    """Neither is it attacked, nor cleaned, nor are its features written; copies of one image may be embedded."""
    constant = {k: np.zeros_like(v) if v.dtype.kind == "f" else v for k, v in encoder.tensors.items()}
    kinds.write(replace(encoder, tensors=constant), "constant")
    for words in (("badencoder", "constant", "--data", "train", *ONE), ("embed", "constant", "--data", "train"),
                  ("purify", "constant", "--data", "train", "--method", "finetune:epochs=1")):  # fmt: skip
        status, _, err = sslbd(*words, "-q", "--device", "cpu", "-o", "out")
        assert status == 2 and "its features are constant" in err and not (tmp_path / "out").exists(), words
    copies = make_dataset(4)
    kinds.write(replace(copies, images=copies.images[:1].repeat(4, 0)), "copies")
    assert sslbd("embed", "clean", "--data", "copies", "-q", "--device", "cpu", "-o", "out")[0] == 0


def test_images_of_another_size_are_refused_for_any_reference(sslbd, files):
    kinds.write(make_dataset(size=20), "larger")
    words = ["--reference-class", 0, "--reference-class", 1, "--reference-data", "train", "--reference-data", "larger"]
    status, _, err = sslbd("badencoder", "clean", "--data", "train", *TWO, *words, *CPU, "-o", "out")
    assert status == 2 and "the encoder takes 16x16 images, got 20x20" in err
