"""What users and their scripts read, word for word: tests/golden/NAME, written anew by --regold."""

import dataclasses

import numpy as np
import pytest

from micro import make_dataset
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Artefact, Encoder, Features, Report, Truth

DATA = {
    "command": "data",
    "version": "1",
    "args": {"--count": 60, "--seed": 0, "--size": 16, "@name": "shapes"},
    "inputs": [],
}
TRAIN = {
    "command": "pretrain",
    "version": "1",
    "args": {"--epochs": 2, "--method": "simclr:temperature=0.2,hidden=0,out=128", "--seed": 0},
    "inputs": [{"option": "INPUT", "kind": "dataset", "sha256": "ab" * 32}],
    "device": "cpu",
    "torch": "2.6.0",
}


def samples() -> dict[str, Artefact]:
    truth = Truth(poisoned=np.arange(60) < 3, box=np.zeros((60, 4), np.int32), source=np.arange(60))
    tensors = {"encoder.0.weight": np.arange(8, dtype=np.float32), "projector.0.bias": np.zeros(2, np.float32)}
    encoder = Encoder(
        arch="tiny:width=8", size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), dim=32, tensors=tensors
    )  # fmt: skip
    features = Features(feats=np.ones((60, 32), np.float32), labels=np.zeros(60, np.int64), classes=("a",))
    results = {"asr": {"value": 0.95, "low": 0.9, "high": 1.0, "sd": None, "n": 20, "seeds": 1}, "target": "class-1"}
    return {
        "dataset": dataclasses.replace(make_dataset(), truth=truth, history=(DATA,)),
        "encoder": dataclasses.replace(encoder, history=(DATA, TRAIN)),
        "features": features,
        "report": Report(command="probe", results=results, history=(DATA, TRAIN)),
    }


@pytest.mark.parametrize("kind", samples())
@pytest.mark.parametrize("form", ["txt", "json"])
def test_info(sslbd, golden, tmp_path, kind, form):
    kinds.write(samples()[kind], str(tmp_path / "a"))
    status, out, err = sslbd("info", tmp_path / "a", *(["--json"] if form == "json" else []))
    assert (status, err) == (0, "")
    golden(f"info-{kind}.{form}", out)


def test_recipe(sslbd, golden, tmp_path):
    kinds.write(samples()["encoder"], str(tmp_path / "a"))
    golden("info-recipe.sh", sslbd("info", "--recipe", tmp_path / "a")[1])


def test_the_help_of_a_key(sslbd, golden):
    golden("poison-trigger-patch-help.txt", sslbd("poison", "--trigger", "patch:help")[1])
