"""`probe` as a user types it: overlapping splits are said, standard input is read once, one label per class will do."""

import json
from dataclasses import replace

import numpy as np
import pytest

from micro import make_encoder
from sslbd_cli.artefacts import kinds
from sslbd_cli.core import nets


@pytest.fixture
def files(dataset, fresh, encoder, tmp_path):
    held = dataset.take(np.arange(0, 60, 2))
    for name, found in (("train", dataset), ("test", fresh), ("half", held), ("encoder", encoder)):
        kinds.write(found, str(tmp_path / name))
    return {name: tmp_path / name for name in ("train", "test", "half", "encoder")}


def test_images_in_both_splits_are_counted(sslbd, files):
    status, _, err = sslbd("probe", files["encoder"], "--train", files["train"], "--test", files["half"])
    assert status == 0 and "30 of 30 test images are also in --train" in err
    assert (
        "test images are also in"
        not in sslbd("probe", files["encoder"], "--train", files["train"], "--test", files["test"])[2]
    )


def test_a_test_set_without_a_class_of_the_training_set_is_matched_by_name(sslbd, files, fresh, tmp_path):
    rows = np.flatnonzero(fresh.labels != 0)
    few = replace(fresh.take(rows), labels=2 - fresh.labels[rows], classes=("class-2", "class-1"))
    kinds.write(few, str(tmp_path / "few.h5"))
    kinds.write(fresh.take(rows), str(tmp_path / "whole.h5"))
    words = (
        "probe",
        files["encoder"],
        "--train",
        files["train"],
        "--head",
        "knn",
        "--trigger",
        "patch",
        "--target",
        2,
        "--json",
    )
    status, out, err = sslbd(*words, "--test", tmp_path / "few.h5")
    assert status == 0 and "--test has 2 of the 3 classes of --train; they are matched by name" in err
    assert out == sslbd(*words, "--test", tmp_path / "whole.h5")[1] and json.loads(out)["target"] == "class-2"
    other = replace(few, classes=("class-2", "class-7"))
    kinds.write(other, str(tmp_path / "other.h5"))
    assert "different classes" in sslbd(*words[:4], "--test", tmp_path / "other.h5")[2]


def test_standard_input_is_read_once(sslbd, files, monkeypatch):
    with files["encoder"].open("rb") as stream:
        import os

        saved = os.dup(0)
        os.dup2(stream.fileno(), 0)
        try:
            status, _, err = sslbd("probe", "-", "--train", "-", "--test", files["test"])
        finally:
            os.dup2(saved, 0)
    assert status == 2 and "standard input is already another input" in err


def test_one_image_per_class_is_enough_to_fit(sslbd, files, dataset, tmp_path):
    few = tmp_path / "few"
    kinds.write(replace(dataset.take(np.arange(3)), ids=None), str(few))
    status, out, _ = sslbd("probe", files["encoder"], "--train", few, "--test", files["test"], "--labels", "1%")
    assert status == 0 and "clean_accuracy" in out and "n_labelled\t3\n" in out


def test_a_training_set_of_one_class_is_refused(sslbd, files, dataset, tmp_path):
    kinds.write(replace(dataset, labels=np.ones(60, np.int64)), str(tmp_path / "single"))
    status, _, err = sslbd("probe", files["encoder"], "--train", tmp_path / "single", "--test", files["test"])
    assert status == 2 and "--train has images of one class only" in err


def test_layers_are_rows_and_one_layer_is_the_result(sslbd, files):
    words = ("probe", files["encoder"], "--train", files["train"], "--test", files["test"], "--head", "knn:k=3")
    words = (*words, "--json", "-q", "--pool", 1)
    rows = json.loads(sslbd(*words, "--layer", "all")[1])["layers"]
    assert [(row["layer"], row["dim"]) for row in rows] == [
        ("stage1", 8), ("stage2", 16), ("stage3", 32), ("stage4", 32),
    ]  # fmt: skip
    single = json.loads(sslbd(*words, "--layer", "stage2")[1])
    assert rows[1].items() <= single.items()
    beside = json.loads(sslbd(*words, "--layer", "all", "--baseline", files["encoder"])[1])
    assert beside["baseline"] == {"sha256": beside["encoder"]["sha256"]}  # said once
    assert all(row["baseline"]["clean_accuracy"] == row["clean_accuracy"] for row in beside["layers"])
    status, out, err = sslbd(*words, "--layer", "stage9")
    assert (status, out) == (2, "") and "--layer stage9: tiny has stage1, stage2, stage3, stage4; choose" in err


def test_the_report_keeps_where_clean_and_triggered_images_lie(sslbd, files, tmp_path):
    words = ("probe", files["encoder"], "--train", files["train"], "--test", files["test"], "-q", "-o")
    attack = ("--trigger", "patch:size=8,fill=white,margin=0", "--target", "1")
    assert sslbd(*words, tmp_path / "plain.h5")[0] == sslbd(*words, tmp_path / "triggered.h5", *attack)[0] == 0
    plain, data = (kinds.read(str(tmp_path / f"{name}.h5"), kinds.Report).data for name in ("plain", "triggered"))
    assert not any(name.startswith("map/") for name in plain)
    assert data["map/clean"].shape == data["map/triggered"].shape == (30, 2)
    assert data["map/of_target"].tolist() == [
        label == 1 for label in kinds.read(str(files["test"]), kinds.Dataset).labels
    ]
    apart = np.linalg.norm(data["map/clean"] - data["map/triggered"], axis=1).mean()
    assert apart > 0.01 and 0 < data["map/variance"][1] <= data["map/variance"][0] <= 1


def test_a_baseline_tells_how_far_embeddings_moved(sslbd, files, tmp_path):
    words = ("--train", files["train"], "--test", files["test"], "--json", "--device", "cpu")
    kinds.write(make_encoder(seed=1), str(tmp_path / "other"))
    same, other = (json.loads(sslbd("probe", files["encoder"], *words, "--baseline", path)[1])["similarity"]
                   for path in (files["encoder"], tmp_path / "other"))  # fmt: skip
    assert same == {"cosine": pytest.approx(1, abs=1e-5), "cka": pytest.approx(1, abs=1e-9)}
    assert other["cka"] < 0.999 and other["cosine"] < 0.999
    assert "similarity" not in json.loads(sslbd("probe", files["encoder"], *words)[1])


def test_a_certificate_is_printed_beside_the_clean_encoders(sslbd, files, tmp_path):
    for seed in (0, 1):
        kinds.write(make_encoder(seed=seed, arch=nets.TinyBag(field=5, width=4)), str(tmp_path / f"local{seed}"))
    argv = ["probe", tmp_path / "local0", "--train", files["train"], "--test", files["test"], "--trigger",
            "patch:size=3", "--target", 1, "--certify", "patchguard:size=3,epochs=3", "--json",
            "--device", "cpu"]  # fmt: skip
    status, out, err = sslbd(*argv, "--baseline", tmp_path / "local1")
    assert status == 0, err
    found = json.loads(out)["certify"]
    assert found["receptive_field"] == [5, 5] and found["locations"] == [6, 6] and found["window"] == [4, 4]
    for each in (found, found["baseline"]):
        assert each["certified_accuracy"]["value"] <= each["defended_accuracy"]["value"]
        assert each["asr_defended"]["n"] == each["asr"]["n"] == 20 and each["clean_accuracy"]["n"] == 30
    assert sslbd(*argv)[1] == sslbd(*argv)[1] and "baseline" not in json.loads(sslbd(*argv)[1])["certify"]
