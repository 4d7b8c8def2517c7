"""Where a trigger sends the answers: by hand, and through `probe` without a target."""

import json
import math

import numpy as np
import pytest

from sslbd_cli.artefacts import kinds, results
from sslbd_cli.core import metrics
from sslbd_cli.probe import destination

CLEAN = [np.array([[8, 1, 1], [1, 9, 0], [0, 1, 9]]), np.array([[10, 0, 0], [1, 9, 0], [0, 0, 10]])]
TRIGGERED = [np.array([[1, 0, 9], [4, 3, 3], [0, 0, 10]]), np.array([[1, 0, 9], [4, 3, 3], [0, 0, 10]])]


def test_shares_of_the_answers_by_hand():
    assert destination.most_affected(CLEAN, TRIGGERED) == 2
    shares = destination.answered(CLEAN, TRIGGERED, 2)
    assert shares["answered_clean"]["value"] == pytest.approx(1 / 3)  # 10 of 30 by both heads
    assert shares["answered_triggered"]["value"] == pytest.approx(22 / 30)
    assert shares["answered_triggered"]["n"] == 30 and shares["answered_triggered"]["seeds"] == 2
    table = destination.rows(CLEAN, TRIGGERED, ["cat", "dog", "ring"], (TRIGGERED, CLEAN))
    assert [row["class"] for row in table] == ["ring", "cat", "dog"]  # by rise
    assert [round(row["rise"] * 60) for row in table] == [24, -10, -14]
    assert all(row["rise"] == -row["baseline"]["rise"] for row in table)
    assert sum(row["triggered"]["value"] for row in table) == pytest.approx(1)
    assert destination.rows(CLEAN, TRIGGERED, ["cat", "dog", "ring"], None)[0]["baseline"] is None
    many = [np.eye(30, dtype=np.int64)]
    assert len(destination.rows(many, many, [f"c{n}" for n in range(30)], None)) == destination.ROWS


def test_intervals_hold_for_all_classes_together():
    assert metrics.quantile(1) == pytest.approx(metrics.Z95)
    z = metrics.quantile(10)  # the two-sided 0.5 % quantile
    assert math.erfc(z / math.sqrt(2)) == pytest.approx(0.005)
    low, high = metrics.wilson(22, 30, metrics.quantile(3))
    share = destination.answered(CLEAN, TRIGGERED, 2)["answered_triggered"]
    assert (share["low"], share["high"]) == pytest.approx((low, high))
    assert low < metrics.wilson(22, 30)[0] and metrics.wilson(22, 30)[1] < high
    assert not destination.is_beyond_chance(CLEAN, TRIGGERED, 2)  # 22 of 30 instead of 10
    assert destination.is_beyond_chance([2 * CLEAN[0]], [2 * TRIGGERED[0]], 2)


def test_a_trigger_without_a_target_is_followed(sslbd, dataset, fresh, encoder, tmp_path):
    for name, artefact in (("train", dataset), ("test", fresh), ("encoder", encoder)):
        kinds.write(artefact, str(tmp_path / name))
    report = tmp_path / "report.h5"
    words = ("probe", tmp_path / "encoder", "--train", tmp_path / "train", "--test", tmp_path / "test", "--seeds", 2,
             "--trigger", "patch:size=16,fill=white,margin=0", "--baseline", tmp_path / "encoder")  # fmt: skip
    status, out, err = sslbd(*words, "--json", "-o", report)
    assert status == 0 and "the trigger draws answers to " in err
    said = json.loads(out)
    first = said["answers"][0]
    assert said["target"] is None and "asr" not in said and first["class"] == said["most_affected"]
    assert first["triggered"] == said["answered_triggered"] == first["baseline"]["triggered"]  # it is the same encoder
    assert first["clean"] == said["answered_clean"] == said["baseline"]["answered_clean"]
    assert len(said["answers"]) == 3 and said["patched_accuracy"] == said["baseline"]["patched_accuracy"]
    stored = kinds.read(str(report), kinds.Report)
    tables = stored.data["confusion/clean"], stored.data["confusion/triggered"]
    which = fresh.classes.index(said["most_affected"])
    assert int(tables[1][:, which].sum() - tables[0][:, which].sum()) > 0 and "map/of_target" not in stored.data
    typed = results.read(stored)
    assert typed.answers[0].class_name == said["most_affected"] and typed.answers[0].rise == first["rise"]
    assert typed.answers[0].baseline.triggered == typed.answered_triggered
    status, _, err = sslbd("report", report, "-o", tmp_path / "page.html")
    assert status == 0, err
    layered = json.loads(sslbd(*words, "-q", "--json", "--layer", "all")[1])["layers"]
    assert all("answered_triggered" in row and "answers" not in row for row in layered)
