"""The matrix of attacks by detectors: its commands are valid, shelves are its rows and columns, a micro run works."""

import re
from pathlib import Path

import pytest

from planning import checked
from sslbd_cli import plugin
from warm import bash, few_epochs

MATRIX = Path(__file__).resolve().parent.parent / "examples" / "matrix"
LEFT_OUT = {"mntd", "random"}  # learns from shadow encoders; a column under the names of what it judges


def planned(tmp_path, *settings):
    done = bash(f"make -n -C {MATRIX} OUT={tmp_path} DATA=cifar10 {' '.join(settings)}", tmp_path)
    assert done.status == 0, done.err
    return done.out.replace("\\\n", " ")


@pytest.mark.parametrize("scale", ["micro", "small", "paper"])
def test_every_planned_command_is_valid(tmp_path, scale):
    # the report that trigger-filter reads is not there yet
    ran = checked(planned(tmp_path, f"SCALE={scale}", "SEEDS=1", "FROM_trigger-filter= SPEC_trigger-filter=strip"))
    assert {"data", "pretrain", "poison", "badencoder", "probe", "detect", "report"} == set(ran)


def test_every_file_on_the_shelves_is_a_row_or_a_column(tmp_path):
    plan = planned(tmp_path)
    rows, columns = (set(names) for names in zip(*re.findall(r"/cells/([\w-]+)/\d+/([\w-]+)\.json", plan), strict=True))
    assert set(plugin.own("attack")) <= rows
    assert set(plugin.own("detector")) - LEFT_OUT <= columns


def test_a_new_file_is_a_row_or_a_column_by_itself(tmp_path):
    added = "INJECTIONS='badencoder newest' SHELF='inputs/dede samples/brand-new encoder/latest'"
    plan = planned(tmp_path, added, "SEEDS=1", "POOL=1", "POISONS=ctrl")
    for cell in ("newest/0/dede", "ctrl/0/dede", "ctrl/0/brand-new", "newest/0/latest", "clean-moco-v2/0/latest"):
        assert f"/cells/{cell}.json" in plan
    assert "sslbd badencoder" in plan and "--method newest " in plan
    assert "newest/0/brand-new" not in plan, "no images were poisoned"


@pytest.mark.parametrize("setting", ["DETECTORS='dede stripp'", "ATTACKS=badencodr", "DETECTORS=mntd"])
def test_a_name_that_is_none_is_refused(tmp_path, setting):
    done = bash(f"make -n -C {MATRIX} OUT={tmp_path} DATA=cifar10 {setting}", tmp_path)
    assert done.status and "no detector or attack of that name" in done.err


@pytest.mark.story
def test_a_micro_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    few_epochs(monkeypatch)
    tiny = (
        "SCALE=micro PRETRAIN='--arch tiny --epochs 1 --batch 64' 'TRAIN=shapes --count 120' JUDGED=40 LABELS=100 "
        "'TEST=shapes --count 80 --seed 2' 'AUX=shapes --count 120 --seed 3' SHADOW='--limit 60' "
        "SPEC_badencoder=badencoder:epochs=1,batch=32 SPEC_decree=decree:steps=4"
    )
    done = bash(f"make -C {MATRIX} OUT={tmp_path} {tiny}", tmp_path, forgiven=(3,))
    assert done.status == 0, done.err
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| badencoder | " in text and "| clean-moco-v2 | " in text and "## Detectors of training images" in text
    assert "Written by `make SCALE=micro" in text
    assert (tmp_path / "matrix.html").read_text().startswith("<!DOCTYPE html>")
    assert len(list(tmp_path.glob("cells/*/*/*.json"))) == len(list(tmp_path.glob("cells/*/*/*.h5"))) == 9

    (tmp_path / "RESULTS.md").unlink()
    assert bash(f"make -C {MATRIX} part OUT={tmp_path} {tiny}", tmp_path).status == 0
    assert (tmp_path / "RESULTS.md").read_text() == text

    lost = tmp_path / "cells" / "badencoder" / "0" / "feature-norm.h5"
    kept = lost.read_bytes()
    lost.unlink()
    again = bash(f"make -C {MATRIX} OUT={tmp_path} {tiny}", tmp_path, forgiven=(3,))
    assert [argv[0] for argv, _ in again.commands if argv[0] != "report"] == ["badencoder", "detect", "detect"]
    assert lost.read_bytes() == kept


def test_the_results_begin_with_the_notes():
    assert (MATRIX / "RESULTS.md").read_text().startswith((MATRIX / "notes.md").read_text() + "\nWritten by `make")
