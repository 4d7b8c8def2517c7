"""`poison` as a user types it: what is said, what labels may not do, what the history rebuilds."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

from micro import make_dataset
from sslbd_cli import main
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Features

LABEL_FREE = [
    ("random",),
    ("indices", "--indices", "rows"),
    ("kmeans", "--features", "features"),
    ("kmeans:fit=minibatch,members=first", "--features", "features"),
    ("contrastive", "--encoder", "encoder"),
    ("contrastive:criterion=total", "--features", "features"),
]


@pytest.fixture
def files(dataset, encoder, tmp_path, monkeypatch):
    """A dataset of three classes, the same without labels, features that tell its classes apart, a list of rows."""
    monkeypatch.chdir(tmp_path)
    feats = np.eye(3, 8)[dataset.labels] + 0.1 * np.random.default_rng(0).normal(size=(60, 8))
    kinds.write(dataset, "dataset")
    kinds.write(replace(dataset, labels=None), "unlabelled")
    kinds.write(Features(feats=feats.astype(np.float32)), "features")
    kinds.write(encoder, "encoder")
    (tmp_path / "rows").write_text("\n".join(map(str, range(1, 60, 3))) + "\n")
    return tmp_path


def poisoned(path="out") -> list[int]:
    truth = kinds.read(path, Dataset).truth
    return truth.source[truth.poisoned].tolist()


@pytest.mark.parametrize("words", LABEL_FREE, ids=" ".join)
def test_labels_change_no_choice_that_asks_for_none(sslbd, files, words):
    chosen = []
    for name in ("dataset", "unlabelled"):
        status, _, err = sslbd("poison", name, "--select", *words, "--count", 8, "--device", "cpu", "-o", "out")
        assert status == 0, err
        assert ("consistency rate" in err) == (name == "dataset")
        chosen.append(poisoned())
    assert chosen[0] == chosen[1] and len(chosen[0]) == 8


def test_the_emergent_target_is_named(sslbd, files, dataset):
    words = ("--select", "contrastive", "--features", "features", "--class-rate", 0.4, "-o", "out")
    err = sslbd("poison", "dataset", *words)[2]
    rows = poisoned()
    assert len(rows) == 8 and len(set(dataset.labels[rows])) == 1  # 0.4 * 60 / 3
    name = dataset.classes[dataset.labels[rows[0]]]
    assert f"consistency rate (CCR) 1.0000: 8 of 8 are {name}, the emergent target\n" in err
    err = sslbd("poison", "dataset", *words[:-2], "--target", "0", "-o", "out")[2]
    assert f"8 of 8 are {name}\n" in err and "emergent" not in err


@pytest.mark.parametrize("words", [*LABEL_FREE, ("label",)], ids=" ".join)
def test_a_target_that_the_choice_does_not_show_is_warned_of(sslbd, files, dataset, words):
    for target in range(3):
        status, _, err = sslbd("poison", "dataset", "--select", *words, "--count", 9, "--target", target, "-o", "out")
        assert status == 0, err
        counts = np.bincount(dataset.labels[poisoned()], minlength=3)
        most, own = dataset.classes[counts.argmax()], dataset.classes[target]
        doubt = f"warning: --target {own}: {counts.max()} of the 9 chosen images are {most}, {counts[target]} are {own}"
        assert (doubt in err) == ("warning" in err) == (counts[target] < counts.max())
    assert "warning" not in sslbd("poison", "unlabelled", "--select", "random", "--count", 9, "-o", "out")[2]


def test_a_list_is_taken_whole_unless_fewer_are_asked_for(sslbd, files):
    words = ("poison", "dataset", "--select", "indices", "--indices", "rows", "-o", "out")
    assert sslbd(*words)[0] == 0 and poisoned() == list(range(1, 60, 3))
    assert sslbd(*words, "--count", 2)[0] == 0 and poisoned() == [1, 4]
    assert sslbd(*words, "--rate", 0.05)[0] == 0 and poisoned() == [1, 4, 7]


def test_crafted_poisons_are_appended_and_counted(sslbd, files):
    words = ("poison", "dataset", "--craft", "corruptencoder:references=2", "--target", 1, "--count", 12, "-o", "out")
    status, _, err = sslbd(*words)
    assert status == 0 and "12 of 72 images" in err and "2 of 2 are class-1" in err
    assert len(kinds.read("out", Dataset).images) == 72 and len(set(poisoned())) == 2


def test_masks_and_canvases_are_used(sslbd, files, dataset):
    half = np.zeros_like(dataset.images)
    half[..., :8] = 255
    half[:, 0, :, :8] -= 6  # as pictures with losses are
    kinds.write(Dataset(images=half), "masks")
    kinds.write(Dataset(images=np.full((5, 3, 20, 20), 77, np.uint8)), "canvases")
    words = ("poison", "dataset", "--craft", "corruptencoder", "--target", 1, "--count", 6, "-o", "out")
    digests = set()
    for more in ((), ("--canvases", "canvases"), ("--canvases", "canvases", "--masks", "masks")):
        assert sslbd(*words, *more)[0] == 0
        digests.add(kinds.read("out", Dataset).sha256)
    assert len(digests) == 3


@pytest.mark.parametrize("words", [*LABEL_FREE, ("label", "--target", "1")], ids=" ".join)
def test_the_recipe_makes_the_same_file_again(sslbd, files, words):
    assert sslbd("poison", "dataset", "--select", *words, "--count", 8, "--device", "cpu", "-o", "out")[0] == 0
    script = sslbd("info", "out", "--recipe")[1]
    line = shlex.split(script.splitlines()[-1])
    assert line[:2] == ["sslbd", "poison"] and line[-1] == "rebuilt.h5"
    known = {kinds.read_any(name).sha256[:12]: name for name in ("dataset", "features", "encoder")}
    line = [next((name for digest, name in known.items() if f"input-{digest}" in word), word) for word in line]
    assert int(main.run(line[1:])) == 0
    assert (files / "rebuilt.h5").read_bytes() == (files / "out").read_bytes()


def test_side_inputs_are_in_the_history_by_digest(sslbd, files):
    sslbd("poison", "dataset", "--select", "kmeans", "--features", "features", "--count", 5, "-o", "out")
    entry = kinds.read("out", Dataset).history[-1]
    assert [row["option"] for row in entry["inputs"]] == ["INPUT", "--features"]
    assert entry["inputs"][1]["sha256"] == kinds.read("features", Features).sha256
    sslbd("poison", "dataset", "--select", "indices", "--indices", "rows", "-o", "out")
    entry = kinds.read("out", Dataset).history[-1]
    assert entry["inputs"][1]["file"] == "rows" and len(entry["inputs"][1]["sha256"]) == 64
    assert "device" not in entry and "--precision" not in entry["args"]  # nothing was computed on a device


def test_features_of_another_dataset_are_warned_of(sslbd, files):
    kinds.write(make_dataset(seed=5), "fresh")
    for name, warned in (("dataset", False), ("fresh", True)):
        assert sslbd("embed", "encoder", "--data", name, "--device", "cpu", "-q", "-o", "of")[0] == 0
        words = ("--select", "kmeans", "--features", "of", "--count", 5, "-o", "out")
        assert ("names another dataset" in sslbd("poison", "dataset", *words)[2]) == warned
