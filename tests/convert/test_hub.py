"""hf:// addresses: what is fetched from a small hub on loopback, what is recorded, and one line for every fault."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy
import torch

from micro import make_dataset, make_encoder
from small_hub import COMMIT, OLDER, SmallHub, serve
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.convert import hub as hubs
from sslbd_cli.convert.export import from_encoder
from sslbd_cli.errors import InputError

SOURCE = str(Path(hubs.__file__).parents[2])
ARCH = "vit:patch=8,width=16,depth=1,heads=2"
CONFIG = {"model_type": "vit", "image_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PROCESSOR = json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 16}}).encode()


@pytest.fixture(scope="module")
def encoder() -> kinds.Encoder:
    return make_encoder(arch=plugin.parse("arch", ARCH))


@pytest.fixture(scope="module")
def weights(encoder) -> bytes:
    return safetensors.numpy.save(
        {k: np.ascontiguousarray(v) for k, v in from_encoder(encoder, "huggingface")[0].items()}
    )


@pytest.fixture(scope="module")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch) -> SmallHub:
    """A hub without repositories or requests, and an empty cache."""
    server.repos.clear()
    server.requests.clear()
    known = huggingface_hub.constants
    monkeypatch.setattr(known, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        known, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(known, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known, "HF_HUB_OFFLINE", False)
    return server


def config(**changes: object) -> bytes:
    return json.dumps(CONFIG | changes).encode()


def fails(sslbd, *args: object, command: str = "convert") -> str:
    """Run a command that must end with exit 2, one line and no output; return the line."""
    status, out, err = sslbd(command, "-q", *args)
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    return err


def test_a_repository_becomes_the_encoder_that_its_configuration_tells(hub, sslbd, tmp_path, encoder, weights):
    repo = hub.add("some/vit", model__safetensors=weights, config__json=config(), modeling__py=b"print('run')",
                   preprocessor_config__json=PROCESSOR, pytorch_model__bin=b"never read")  # fmt: skip
    first, again, pinned = (tmp_path / name for name in ("first", "again", "pinned"))
    status, _, err = sslbd("convert", "hf://some/vit", "-o", first)
    assert status == 0 and "says --arch vit:depth=1,heads=2 --size 16 --normalise 0.1,0.2,0.3/0.4,0.5,0.6" in err
    got = kinds.read(str(first), kinds.Encoder)
    assert got.arch == encoder.arch and got.size == 16 and got.mean == (0.1, 0.2, 0.3) and got.std == (0.4, 0.5, 0.6)
    assert all((got.tensors[name] == array).all() for name, array in encoder.tensors.items())
    file = f"hf://some/vit@{COMMIT}/model.safetensors"
    digest = hashlib.sha256(weights).hexdigest()
    (entry,) = got.history
    assert entry["inputs"] == [{"option": "INPUT", "kind": "file", "file": file, "sha256": digest}]
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"model.safetensors", "config.json", "preprocessor_config.json"}  # no code, no pickle
    # what the history records makes the same file again, and so does the address that it names
    words = [str(word) for pair in entry["args"].items() for word in pair]
    assert sslbd("convert", "-q", "hf://some/vit@main/model.safetensors", *words, "-o", again)[0] == 0
    assert sslbd("convert", "-q", file, "-o", pinned)[0] == 0
    assert first.read_bytes() == again.read_bytes() == pinned.read_bytes()
    # the user's word counts more than the repository's
    assert sslbd("convert", "-q", "hf://some/vit", "--normalise", "half", "-o", again)[0] == 0
    assert kinds.read(str(again), kinds.Encoder).mean == (0.5, 0.5, 0.5)
    # the cache serves without a hub: by HF_HUB_OFFLINE, and where the hub does not answer
    repo.fault = 503
    assert sslbd("convert", "-q", "hf://some/vit", "-o", again)[0] == 0
    assert again.read_bytes() == first.read_bytes()


def test_offline_is_offline(hub, sslbd, tmp_path, weights, monkeypatch):
    hub.add("some/vit", model__safetensors=weights, config__json=config())
    hub.repos["some/vit"].commits[OLDER] = {"model.safetensors": weights, "config.json": config(image_size=16)}
    out = tmp_path / "out"
    words = ("--normalise", "half", "-q", "-o", out)
    assert sslbd("convert", "hf://some/vit", *words)[0] == 0
    before = out.read_bytes()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert sslbd("convert", "hf://some/vit", *words)[0] == 0
    assert out.read_bytes() == before
    for address in (f"hf://some/vit@{OLDER}", "hf://other/vit"):
        assert "is not in the cache (HF_HOME), and HF_HUB_OFFLINE forbids" in fails(sslbd, address, "-o", out)
    assert "has no such file; its weights are model.safetensors" in fails(sslbd, "hf://some/vit/x.bin", "-o", out)
    assert hub.requests == [] and out.read_bytes() == before


def test_detect_converts_in_passing(hub, sslbd, tmp_path, weights):
    hub.add(
        "some/vit",
        model__safetensors=weights,
        config__json=config(),
        preprocessor_config__json=PROCESSOR,
    )
    (tmp_path / "local.safetensors").write_bytes(weights)
    data = tmp_path / "data.h5"
    kinds.write(make_dataset(count=30), str(data))
    kinds.write(make_dataset(count=80, seed=3), str(tmp_path / "aux.h5"))
    words = ("--method", "feature-norm", "--data", data, "--aux", tmp_path / "aux.h5", "-q")
    encoder, one, two = (tmp_path / name for name in ("encoder", "one", "two"))
    assert sslbd("convert", "-q", "hf://some/vit", "-o", encoder)[0] == 0
    for source, report in ((encoder, one), ("hf://some/vit", two)):
        status, _, err = sslbd("detect", source, *words, "-o", report)
        assert status == 0, err
    assert one.read_bytes() == two.read_bytes()
    recipe = sslbd("info", "--recipe", two)[1]
    assert f"hf://some/vit@{COMMIT}/model.safetensors" in recipe
    err = fails(sslbd, tmp_path / "local.safetensors", *words, command="detect")  # depth and heads are not told
    assert "which no public ViT has" in err and "sslbd convert takes options" in err
    assert "give addresses on the hub to sslbd convert" in fails(
        sslbd, "hf://some/vit", "--data", data, command="embed"
    )


def test_what_the_hub_refuses_is_one_line(hub, sslbd, tmp_path, weights):
    repo = hub.add("some/vit", model__safetensors=weights, config__json=config())
    out = tmp_path / "out"

    def line(address: str = "hf://some/vit", **changes: object) -> str:
        hub.repos["some/vit"] = dataclasses.replace(repo, **changes)
        return fails(sslbd, address, "-o", out)

    assert "there is no such model repository, or it is private; check the spelling, or log in" in line("hf://no/vit")
    assert "or it is private" in line(fault="private")
    assert "gated; ask for access at https://huggingface.co/some/vit, then log in" in line(fault="gated")
    assert "has no revision 'v2'; give a branch, a tag or a commit" in line("hf://some/vit@v2")
    assert "has no such file; did you mean 'model.safetensors'?" in line("hf://some/vit/model.safetensor")
    assert "holds no weights; its weights are model.safetensors" in line("hf://some/vit/config.json")
    assert "an answer of the hub was cut short; try again" in line(cut=("model.safetensors",))
    assert "too many requests" in line(fault=429)
    assert "no usable answer (error 500), and the cache (HF_HOME) lacks this" in line(fault=500)
    assert "the hub refuses access (403)" in line(fault=403)
    forged = line(forged=("model.safetensors",))
    assert "the SHA-256 of model.safetensors is not the one that the hub lists" in forged and "delete /" in forged
    assert not out.exists() and not [*tmp_path.glob("cache/**/*.incomplete")]


def test_no_network_is_one_line(hub, sslbd, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    err = fails(sslbd, "hf://some/vit", "-o", tmp_path / "out")
    assert "the hub gives no usable answer (" in err and "check the network" in err


def test_a_pickle_with_code_runs_nothing(hub, sslbd, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    stream = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": torch.ones(1), "x": Evil()}}, stream)
    hub.add("some/evil", pytorch_model__bin=stream.getvalue(), modeling__py=b"import os")
    err = fails(sslbd, "hf://some/evil", "-o", tmp_path / "out")
    assert (
        f"hf://some/evil@{COMMIT}/pytorch_model.bin: holds more than tensors: its pickle asks for posix.system" in err
    )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(hub, sslbd, tmp_path):
    parts = {f"model-0000{n}-of-00002.safetensors": b"" for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", parts, strict=True))}).encode()
    files = {"model.safetensors.index.json": index, **parts}
    repo = hub.add("some/vit")
    repo.commits[COMMIT] = {name: data for name, data in files.items() if "1-of" not in name}
    err = fails(sslbd, "hf://some/vit", "-o", tmp_path / "out")
    assert "1 of 2 shards are not in the repository: model-00001-of-00002.safetensors" in err
    err = fails(sslbd, "hf://some/vit/model-00002-of-00002.safetensors", "-o", tmp_path / "out")
    assert "1 of 2 shards are not in the repository: model-00001-of-00002.safetensors" in err
    repo.commits[COMMIT]["x-00003-of-00002.bin"] = b""
    assert "that of no shard" in fails(sslbd, "hf://some/vit/x-00003-of-00002.bin", "-o", tmp_path / "out")
    for number, bad in enumerate(
        (b"{}", b'{"weight_map": {}}', b'{"weight_map": 1}', b"[", b'{"weight_map": {"a": "../x.safetensors"}}')
    ):
        repo.revisions["main"] = commit = f"{number:040x}"  # another one, so that the cache does not serve the last
        repo.commits[commit] = files | {"model.safetensors.index.json": bad}
        assert "shards" in fails(sslbd, "hf://some/vit", "-o", tmp_path / "out"), bad


def test_the_weights_are_chosen_safely():
    def chosen(*files: str, file: str | None = None) -> str:
        return hubs.choose(files, hubs.Address("o/n", None, file))

    assert chosen("pytorch_model.bin", "model.safetensors", "flax.msgpack") == "model.safetensors"
    assert chosen("pytorch_model.bin", "other.safetensors") == "other.safetensors"
    assert chosen("pytorch_model.bin", "last.pth", "README.md", "training_args.bin") == "pytorch_model.bin"
    assert chosen("optimizer.pt", "last.pth.tar", "run.py", "x/y.pth") == "last.pth.tar"
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert chosen(*shards, "model.safetensors.index.json", "pytorch_model.bin") == "model.safetensors.index.json"
    assert chosen(*shards, file=shards[0]) == shards[0]
    assert chosen("pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json") == "pytorch_model.bin.index.json"
    assert chosen("a/model.safetensors", "b.pth", file="a/model.safetensors") == "a/model.safetensors"
    for files, said in (
        (("a.safetensors", "b.safetensors", "model.bin"), "holds a.safetensors, b.safetensors; name one of them"),
        (("a.pth", "b.ckpt"), "holds a.pth, b.ckpt; name one of them: hf://o/n/FILE"),
        (("x/a.pth",), "has no usual checkpoint, but x/a.pth"),
        (("model.onnx", "a.json"), "holds no weights in safetensors or of PyTorch (files: a.json, model.onnx)"),
        (("../a.safetensors", "/b.bin", "c\\d.bin", "e\n.bin"), "(files: none)"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            chosen(*files)
        assert said in str(caught.value)


def test_addresses_are_read_as_they_are_written():
    for text, parts in {
        "hf://timm/resnet18.a1_in1k": ("timm/resnet18.a1_in1k", None, None),
        "hf://a/b@v1.0": ("a/b", "v1.0", None),
        "hf://a/b/c/d.pth": ("a/b", None, "c/d.pth"),
        "hf://a/b@refs/pr/3/d.pth": ("a/b", "refs/pr/3", "d.pth"),
        f"hf://a/b@{COMMIT}/d.pth": ("a/b", COMMIT, "d.pth"),
    }.items():
        address = hubs.parse(text)
        assert (address.repo, address.revision, address.file) == parts and str(address) == text
    assert hubs.parse("hf://a/b@feature%2Fx").revision == "feature/x"
    for text in ("hf://", "hf://resnet18", "hf:/a/b", "hf:a/b", "hf://a/b/", "hf://a/b@", "hf://a//b", "hf://a/../b",
                 "hf://a b/c", "hf://datasets/a/b", "https://huggingface.co/a/b", "hf://a/b\n"):  # fmt: skip
        assert hubs.is_address(text)
        with pytest.raises(InputError, match=r"expected hf://OWNER/NAME\[@REVISION\]\[/FILE\]"):
            hubs.parse(text)


def test_the_hub_and_the_cache_are_those_of_the_environment(hub, tmp_path):
    hub.add("some/vit", model__safetensors=b"weights", config__json=b"{}")
    code = "import sys; from sslbd_cli.convert import hub; print(hub.fetch(sys.argv[1], ['config.json'], print).path)"
    home = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": SOURCE}
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.requests.clear()
        done = subprocess.run([sys.executable, "-c", code, "hf://some/vit"], env=home | extra, text=True,
                              capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.splitlines()[-1])
        assert path.read_bytes() == b"weights" and path.is_relative_to(tmp_path / "home")
        assert bool(hub.requests) == (not extra)
