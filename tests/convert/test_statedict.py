"""Foreign files: every form of a state dict is read, nothing in them runs, and anything else is one line."""

import argparse
import collections
import hashlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sslbd_cli.convert import statedict
from sslbd_cli.errors import InputError

STATE = {"module.conv1.weight": torch.arange(12.0).view(3, 4), "module.bn1.num_batches_tracked": torch.tensor(7)}


class Command:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self):
        return os.system, (self.line,)


def put(path: Path, found: object, **how: object) -> str:
    torch.save(found, path, **how)
    return str(path)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        statedict.read(str(path))
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 400
    return line


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
def test_both_formats_of_torch_save_are_read_bare_and_in_a_training_checkpoint(tmp_path, zipped, container):
    found = (
        STATE if container is None else {"epoch": 3, container: collections.OrderedDict(STATE), "optimizer": {"lr": 1}}
    )
    path = put(tmp_path / "a.pth", found, _use_new_zipfile_serialization=zipped)
    assert equal(statedict.read(path).tensors, STATE)


def test_a_container_in_a_container_and_parameters_are_read(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    read = statedict.read(put(tmp_path / "a.pt", {"model": {"state_dict": {"w": weight}}})).tensors
    assert torch.equal(read["w"], torch.ones(2)) and not read["w"].requires_grad


def test_safetensors_are_read_with_their_types_and_the_digest_is_the_files(tmp_path):
    state = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)}
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    read = statedict.read(str(path))
    assert equal(read.tensors, state) and read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "plain pickle 2", "in a state dict"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, form):
    trace = tmp_path / "ran"
    evil = Command(f"touch {trace}")
    path = tmp_path / "evil.pth"
    if form.startswith("plain"):
        path.write_bytes(pickle.dumps(evil, protocol=2 if form.endswith("2") else None))
    else:
        put(path, STATE | {"w": evil} if "state" in form else evil, _use_new_zipfile_serialization=form != "legacy")
    line = refused(path)
    assert not trace.exists()
    assert form == "plain pickle" or "posix.system; nothing was run" in line
    pickle.loads(pickle.dumps(evil))  # the trap is real: an ordinary load springs it
    assert trace.exists()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"args": torch.nn.ReLU(), "state_dict": STATE}, "asks for torch.nn.modules.activation.ReLU"),
        ({"w": np.zeros(3)}, "holds no tensors under names (entries: w)"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
        ({}, "an empty dict"),
        (torch.ones(2), "a Tensor"),
        ([STATE], "a list"),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors under names (entries: epoch, lr)"),
        ({None: torch.ones(2)}, "holds no tensors under names"),
        ({"a\x1b[31m\nb": 1}, "holds no tensors under names"),
    ],
)
def test_what_is_not_a_state_dict_of_tensors_is_refused(tmp_path, found, said):
    assert said in refused(put(tmp_path / "a.pth", found))


def test_nested_dictionaries_come_before_the_names_in_them(tmp_path):
    two = {
        "epoch": 3,
        "state_dict": STATE,
        "ema": {"state_dict": STATE},
        "optimizer": {"state": {0: {"m": torch.ones(1)}}},
    }
    read = statedict.read(put(tmp_path / "a.pth", two)).tensors
    wanted = [*(f"state_dict.{name}" for name in STATE), *(f"ema.state_dict.{name}" for name in STATE)]
    assert sorted(read) == sorted([*wanted, "optimizer.state.0.m"])
    wrapped = {f"_orig_mod.{name.replace('module.', 'module._orig_mod.')}": tensor for name, tensor in STATE.items()}
    assert equal(statedict.read(put(tmp_path / "b.pth", {"model": wrapped})).tensors, STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_values_and_options_beside_the_weights_are_read_past_without_their_classes(tmp_path, zipped):
    options = argparse.Namespace(lr=np.float64(0.1), folder=Path("x"), counts=collections.defaultdict(int, a=1))
    values = {"best": np.float32(0.9), "curve": np.arange(3), "names": np.array(["a", 1], dtype=object),
              "steps": collections.deque([1]), "random": np.random.get_state(), "args": options}  # fmt: skip
    path = put(tmp_path / "a.pth", {"state_dict": STATE, **values}, _use_new_zipfile_serialization=zipped)
    assert equal(statedict.read(path).tensors, STATE)


def test_a_pickle_that_holds_itself_ends(tmp_path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    assert "holds no tensors under names" in refused(put(tmp_path / "a.pth", loop))


def test_methods_shadowed_by_the_pickle_are_not_called(tmp_path):
    state = collections.OrderedDict(STATE)
    state.get = state.keys = 3  # type: ignore[method-assign,assignment]
    state["module.conv1.weight"] = tensor = STATE["module.conv1.weight"].clone()
    tensor.to = tensor.contiguous = 3  # type: ignore[method-assign,assignment]
    path = put(tmp_path / "a.pth", state)
    loaded = torch.load(path, weights_only=True)
    assert loaded.get == 3 and loaded["module.conv1.weight"].to == 3  # the trap is real
    read = statedict.read(path).tensors
    assert equal(read, STATE) and callable(read["module.conv1.weight"].to)


def test_options_beside_the_weights_are_read_past(tmp_path):
    found = {"args": argparse.Namespace(arch="vit_small", lr=0.1), "epoch": 3, "student": {}, "teacher": STATE}
    assert equal(statedict.read(put(tmp_path / "dino.pth", found)).tensors, STATE)


class Scripted(torch.nn.Module):
    """Nested modules, parameters, buffers, half precision, a view, plain attributes and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
        self.low = torch.nn.Parameter(torch.arange(6.0).view(2, 3).T.half())
        self.register_buffer("scalar", torch.tensor(7))
        self.sizes = [1, 2]
        self.name = "x"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + len(self.sizes)


@pytest.fixture
def script(tmp_path):
    torch.manual_seed(0)
    module, path = Scripted(), tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    return module, path


def rewritten(path: Path, to: Path, change) -> Path:
    """Copy an archive, with every member passed through change(name, bytes)."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return to


def test_the_tensors_of_a_torchscript_archive_are_its_state_dict(script):
    module, path = script
    assert equal(statedict.read(str(path)).tensors, dict(module.state_dict()))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_code_in_a_torchscript_archive_is_not_even_compiled(script, tmp_path):
    module, path = script
    broken = rewritten(path, tmp_path / "b.pt", lambda name, data: b"raise (" if name.endswith(".py") else data)
    with pytest.raises(RuntimeError):
        torch.jit.load(broken)
    assert equal(statedict.read(str(broken)).tensors, dict(module.state_dict()))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_torchscript_archive_runs_nothing(script, tmp_path, protocol):
    trace = tmp_path / "ran"
    evil = pickle.dumps({"w": Command(f"touch {trace}")}, protocol=protocol)
    path = rewritten(script[1], tmp_path / "evil.pt", lambda name, data: evil if name.endswith("data.pkl") else data)
    assert "asks for posix.system; nothing was run" in refused(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "os.path.join", "torch.jit._pickle.restore_type_tag"])
def test_a_torchscript_archive_gets_no_other_function(script, tmp_path, name):
    module, _, function = name.rpartition(".")
    asks = b"\x80\x02c" + module.encode() + b"\n" + function.encode() + b"\n."
    path = rewritten(
        script[1], tmp_path / "evil.pt", lambda member, data: asks if member.endswith("data.pkl") else data
    )
    assert f"asks for {name}" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: data[:-1] if "/data/" in name else data,
        lambda name, data: data + b"\0" * 4 if "/data/" in name else data,
        lambda name, data: data[: len(data) // 2] if name.endswith("/data.pkl") else data,
        lambda name, data: (
            data.replace(b"K\x04K\x03K\x03K\x03", b"K\x7fK\x03K\x03K\x03") if "data.pkl" in name else data
        ),
    ],
)
def test_a_damaged_torchscript_archive_is_refused(script, tmp_path, change):
    refused(rewritten(script[1], tmp_path / "damaged.pt", change))


def test_a_compressed_or_overlapping_archive_is_refused_before_it_is_unpacked(tmp_path):
    plain, bomb = tmp_path / "a.pth", tmp_path / "bomb.pth"
    put(plain, {"w": torch.zeros(1 << 20)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < 50_000
    assert "compressed or overlap" in refused(bomb)


def test_other_files_are_named_for_what_they_are(tmp_path):
    array, archive, other, text, empty = (tmp_path / name for name in ("a.npy", "a.npz", "a.zip", "a.html", "empty"))
    np.save(array, np.zeros(3))
    np.savez(archive, x=np.zeros(3))
    with zipfile.ZipFile(other, "w") as target:
        target.writestr("a.txt", "hello")
    text.write_text("<html>404</html>")
    empty.write_bytes(b"")
    assert "NumPy array" in refused(array)
    assert "NumPy archive" in refused(archive)
    assert "without a PyTorch checkpoint" in refused(other)
    assert "neither safetensors nor" in refused(text)
    assert "is empty" in refused(empty)
    assert "No such file" in refused(tmp_path / "missing")
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere_is_refused(tmp_path, form):
    buffer = io.BytesIO()
    if form == "safetensors":
        buffer.write(safetensors.torch.save(STATE))
    else:
        torch.save(STATE, buffer, _use_new_zipfile_serialization=form == "zip")
    whole, path = buffer.getvalue(), tmp_path / "cut"
    for length in {*range(0, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cast_gives_fp32_and_copies_only_other_types(dtype):
    given = torch.tensor([1.5, -2.0], dtype=dtype)
    got = statedict.cast("w", given, torch.zeros(2))
    assert got.dtype == torch.float32 and got.tolist() == [1.5, -2.0]
    assert (got.data_ptr() == given.data_ptr()) == (dtype == torch.float32)


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1e300, 0], dtype=torch.float64),  # overflows to infinity in fp32
        torch.tensor([1, 2]),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2).to(torch.float8_e4m3fn),  # without its scales
    ],
)
def test_cast_refuses_what_is_no_plain_finite_weight(given):
    with pytest.raises(InputError, match="tensor w"):
        statedict.cast("w", given, torch.zeros(2))


def test_writing_is_byte_stable_and_without_metadata(tmp_path):
    arrays = {"b": np.ones(2, np.float32), "a": np.array(3)}
    for name in ("one", "two"):
        statedict.write(arrays, str(tmp_path / name))
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "two").read_bytes() and b"__metadata__" not in one
    read = safetensors.torch.load(one)
    assert read["a"].shape == () and read["a"].item() == 3  # num_batches_tracked is a scalar


@pytest.mark.parametrize("name", ["a.pth", "a.PT", "a.bin", "x/a.pkl"])
def test_a_pickles_name_is_refused_with_a_better_one(name):
    with pytest.raises(InputError, match=r"no pickles.*name it a\.safetensors"):
        statedict.refuse_pickle(name)
    statedict.refuse_pickle("a.safetensors")
    statedict.refuse_pickle("-")


def test_an_encoder_is_none_of_the_checkpoints_whatever_the_length_of_its_header(tmp_path):
    """A safetensors header of 4,224 bytes begins with the byte 80 (hexadecimal), as a pickle does."""
    for length in (4216, 4224):
        header = b'{"__metadata__":{"sslbd":"x"}}'.ljust(length)
        (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + header)
        assert not statedict.is_foreign(str(tmp_path / "file")), length
        (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + header.replace(b"sslbd", b"other"))
        assert statedict.is_foreign(str(tmp_path / "file")), length
