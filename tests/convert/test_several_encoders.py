"""Checkpoints in parts, and checkpoints of several encoders: what is taken, and what is refused in one line."""

import json

import pytest
import safetensors.torch
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import nets

ARCH = "timm:model=test_vit2"
NAMES = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture(scope="module")
def state():
    net = nets.load(make_encoder(64, seed=3, arch=plugin.parse("arch", ARCH)))
    return {name: tensor.clone() for name, tensor in net.encoder.state_dict().items()}


def other(state):
    return {name: tensor * 1.125 for name, tensor in state.items()}


def under(prefix, state):
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


@pytest.fixture
def convert(sslbd, tmp_path):
    def work(source, *words):
        out = tmp_path / "out.safetensors"
        status, _, err = sslbd(
            "convert", source, "--arch", ARCH, "--size", "64", "--normalise", "none", "-o", out, *words
        )
        return status, err, kinds.read(str(out), Encoder).tensors if status == 0 else None

    return work


def same(tensors, state):
    return all(torch.equal(torch.as_tensor(tensors[f"encoder.{name}"]), tensor) for name, tensor in state.items())


@pytest.fixture
def shards(state, tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(state)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for file, half in zip(NAMES, halves, strict=True):
        safetensors.torch.save_file({name: state[name] for name in half}, folder / file)
    places = {name: file for file, half in zip(NAMES, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_folder_its_index_and_one_shard_are_the_same_checkpoint(convert, shards, state):
    for source in (shards, shards / NAMES[1]):
        status, err, tensors = convert(source)
        assert status == 0, err
        assert same(tensors, state)


def test_a_missing_shard_and_a_damaged_index_are_refused(convert, shards):
    (shards / NAMES[0]).unlink()
    for source in (shards, shards / "model.safetensors.index.json", shards / NAMES[1]):
        status, err, _ = convert(source)
        assert status == 2 and f"1 of its 2 shards are missing ({NAMES[0]})" in err.splitlines()[-1], err
    (shards / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    status, err, _ = convert(shards / "model.safetensors.index.json")
    assert status == 2 and "is no index of a sharded checkpoint" in err


@pytest.mark.parametrize(
    ("prefixes", "taken"),
    [
        (("backbone", "backbone_momentum"), "backbone"),
        (("student_backbone", "teacher_backbone"), "teacher_backbone"),
        (("model", "model_ema"), "model_ema"),
        (("encoder", "target_encoder"), "target_encoder"),
        (("online_encoder", "target_encoder"), "online_encoder"),
    ],
)
def test_of_two_encoders_the_one_that_users_take_and_another_by_prefix(convert, state, tmp_path, prefixes, taken):
    given = dict(zip(prefixes, (state, other(state)), strict=True))
    tensors = {name: tensor for prefix, part in given.items() for name, tensor in under(prefix, part).items()}
    torch.save({"state_dict": tensors | {"projector.weight": torch.ones(2, 2)}}, tmp_path / "both.pth")
    status, err, found = convert(tmp_path / "both.pth")
    assert status == 0 and same(found, given[taken]), err
    assert "holds 2 whole encoders" in err and "--prefix chooses another one" in err
    left = next(prefix for prefix in prefixes if prefix != taken)
    status, err, found = convert(tmp_path / "both.pth", "--prefix", left)
    assert status == 0 and same(found, given[left]), err


def test_two_encoders_that_no_name_tells_apart_are_a_choice(convert, state, tmp_path):
    tensors = under("left", state) | under("right", other(state))
    torch.save(tensors, tmp_path / "both.pth")
    status, err, _ = convert(tmp_path / "both.pth")
    assert status == 2 and err.count("\n") == 1, err
    assert "holds 2 whole encoders, under left, right; choose one by --prefix" in err
    status, err, found = convert(tmp_path / "both.pth", "--prefix", "right")
    assert status == 0 and same(found, other(state)), err
    status, err, _ = convert(tmp_path / "both.pth", "--prefix", "middle")
    assert status == 2 and "has no encoder under --prefix middle; it has names of one under" in err, err
