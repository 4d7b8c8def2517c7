"""Whatever happens to a file on its way: it is refused in one line or read correctly, soon and in little memory."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuzz import commands
from micro import make_dataset, make_encoder
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.artefacts.kinds import Dataset, Encoder, Guard, Truth
from sslbd_cli.core import nets

HISTORY = ({"command": "data", "version": "1", "args": {"--seed": 0, "--size": 4}, "inputs": []},)


def small_dataset() -> Dataset:
    """Hold so few pixels that most mutations hit the structure of the file."""
    made = make_dataset(count=4, size=4)
    truth = Truth(poisoned=np.ones(4, bool), box=np.zeros((4, 4), np.int32), source=np.arange(4))
    texts = captions.encode(["a cat", "un café", "猫", "?"])
    return dataclasses.replace(made, truth=truth, captions=texts, history=HISTORY)


def small_encoder() -> Encoder:
    made = make_encoder(arch=nets.Tiny(width=4))
    few = {name: tensor for name, tensor in made.tensors.items() if tensor.size < 50}
    return dataclasses.replace(made, tensors=few, history=HISTORY)


def small_guard() -> Guard:
    words = dict.fromkeys(("encoder", "search_space", "doubt"), "x")
    arrays = {"aux": np.arange(3, dtype=np.uint64), "calibration": np.arange(5.0)}
    state = {"mean": np.ones((2, 3), np.float32)}
    return Guard(method="strip", size=4, reference=None, state=state, history=HISTORY, **words, **arrays)


def fuzz(path: Path, count: int, seed: int) -> dict[str, float]:
    driver = Path(__file__).with_name("fuzzing.py")
    done = subprocess.run(
        [sys.executable, driver, path, str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=30 + count,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("make", [pytest.param(small_dataset, marks=pytest.mark.story), small_encoder, small_guard])
@pytest.mark.parametrize(
    ("count", "seed"), [(200, 0), pytest.param(20_000, 1, marks=pytest.mark.slow)], ids=["200", "20000"]
)
def test_mutations_are_refused_or_read_correctly(tmp_path, make, count, seed):
    kinds.write(make(), str(tmp_path / "valid"))
    seen = fuzz(tmp_path / "valid", count, seed)
    assert seen.keys() <= {"refused", "read", "slowest", "megabytes"}
    assert seen["refused"] + seen["read"] == count
    assert seen["refused"] > count // 2  # and some are read: both ways are taken
    assert seen["read"] > 0
    assert seen["slowest"] < 70 and seen["megabytes"] < 400


@pytest.mark.parametrize("count", [1, pytest.param(2100, marks=pytest.mark.slow)])
def test_commands_refuse_mutants_or_work(tmp_path, monkeypatch, capsys, count):
    """A very small share of `python tests/fuzz/commands.py SEED COUNT`."""
    monkeypatch.chdir(tmp_path)
    seen = commands.everything(0, count)
    assert [counts["faults"] for counts in seen.values()] == [0] * 7, capsys.readouterr().err
    assert all(sum(counts.values()) == count for counts in seen.values())
