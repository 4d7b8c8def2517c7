"""sslbd convert: foreign checkpoints in, foreign weights out; one line and exit 2 for everything else."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.convert import layouts
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.main import run


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("convert") / "simclr.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return str(path)


def encoder(path: Path, arch: str) -> str:
    spec = plugin.parse("arch", arch)
    kinds.write(nets.save(nets.new(spec, 8, (0, 0, 0), (1, 1, 1), generator(0, "test"))), str(path))
    return str(path)


@contextlib.contextmanager
def standard_input(path: str) -> Iterator[None]:
    kept = os.dup(0)
    try:
        with open(path, "rb") as file:
            os.dup2(file.fileno(), 0)
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def convert(*args: object) -> int:
    return run(["convert", *map(str, args)])


#: What a ResNet with a 3x3 stem does not say of itself.
STEM = ("--arch", "resnet18:stem=cifar")


def fails(capfd, *args: object) -> str:
    """Run a command that must end with exit 2, one line and no output; return the line."""
    assert convert(*args) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("sslbd convert: ")
    return err


def test_import_and_export_give_back_the_same_tensors(checkpoint, state, tmp_path, capfd):
    ours, theirs = tmp_path / "enc", tmp_path / "out.safetensors"
    assert convert(checkpoint, *STEM, "--size", 8, "--normalise", "cifar10", "-o", ours) == 0
    said = capfd.readouterr().err
    assert "read as torchvision, resnet18:stem=cifar" in said
    assert "left out 2 tensors that are not part of the encoder: fc (2)" in said
    assert "input 8 pixels (as asked), normalised by 0.4914,0.4822,0.4465/0.2023,0.1994,0.201 (as asked)" in said
    assert convert("--to", "torchvision", ours, "-o", theirs) == 0
    assert "load it into torchvision.models.resnet18() with fc=Identity()" in capfd.readouterr().err
    back = safetensors.torch.load_file(theirs)
    assert set(back) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    again = tmp_path / "again"
    assert convert(theirs, *STEM, "--size", 8, "--normalise", "cifar10", "-o", again) == 0
    assert kinds.read(str(again), kinds.Encoder).sha256 == kinds.read(str(ours), kinds.Encoder).sha256


def test_the_history_names_the_file_and_what_every_option_came_to(checkpoint, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        assert convert("-q", checkpoint, *STEM, "--size", 8, "--normalise", "none", "-o", path) == 0
    assert first.read_bytes() == second.read_bytes()
    (entry,) = kinds.read(str(first), kinds.Encoder).history
    assert entry["args"] == {"--from": "torchvision", "--arch": "resnet18:stem=cifar", "--size": 8,
                             "--normalise": "0,0,0/1,1,1"}  # fmt: skip
    digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    assert entry["inputs"] == [{"option": "INPUT", "kind": "file", "file": "simclr.pth", "sha256": digest,
                                "left_out": {"fc": 2}}]  # fmt: skip


def test_what_the_history_records_makes_the_same_encoder(checkpoint, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert convert("-q", checkpoint, *STEM, "--normalise", "cifar10", "--size", 8, "-o", one) == 0
    (entry,) = kinds.read(str(one), kinds.Encoder).history
    args = [str(word) for pair in entry["args"].items() for word in pair]
    assert convert("-q", checkpoint, *args, "-o", two) == 0
    assert one.read_bytes() == two.read_bytes()


def test_a_pipe_gives_the_encoder_of_a_file(checkpoint, tmp_path, capfdbinary):
    options = ("-q", *STEM, "--size", 8, "--normalise", "none")
    file, piped = tmp_path / "file", tmp_path / "piped"
    with standard_input(checkpoint):
        assert convert(*options) == 0
    piped.write_bytes(capfdbinary.readouterr().out)
    assert convert(checkpoint, *options, "-o", file) == 0
    one, two = (kinds.read(str(path), kinds.Encoder) for path in (file, piped))
    assert one.sha256 == two.sha256
    one.history[0]["inputs"][0]["file"] = "-"  # a pipe has no name; everything else is the same
    assert one.history == two.history


def test_an_export_through_a_pipe_is_the_exported_file(tmp_path, capfdbinary):
    ours, theirs = encoder(tmp_path / "enc", "resnet18"), tmp_path / "out"
    assert convert("--to", "torchvision", ours, "-o", theirs) == 0
    with standard_input(ours):
        assert convert("-q", "--to", "torchvision") == 0
    assert capfdbinary.readouterr().out == theirs.read_bytes()


def test_a_hostile_pickle_runs_nothing_and_leaves_nothing(tmp_path, capfd):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(1), "x": Evil()}}, path)
    assert "asks for posix.system; nothing was run" in fails(capfd, path, "-o", tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "normalisation is not stored; give --normalise with one of cifar10 ("),
        ((), "give --arch resnet18:stem=cifar or resnet18:stem=solo, which its weights do not tell apart"),
        (
            ("--normalise", "cifar"),
            "--normalise cifar: expected imagenet, cifar10, cifar10-solo, stl10, clip",
        ),
        (("--from", "hf-vit"), "has no tensor 'embeddings.cls_token'"),
        (("--from", "torchvison"), "did you mean 'torchvision'"),
        (("--normalise", "none", "--arch", "resnet34"), "missing"),
        (("--data", "missing.h5"), "missing.h5: No such file"),
        (("--to", "jax"), "jax"),
        (("--from", "badencoder"), "no tensor '3.0.conv1.weight'"),
        (("--from", "timm"), "--arch timm:model=NAME"),
        (("--from", "keras"), "keras"),
        (("--arch", "resnet19"), "did you mean 'resnet18'"),
        (("--size", "3"), "--size"),
        (("--to", "torchvision", "--size", "8"), "--to goes without them"),
        (("--to", "torchvision"), "not an sslbd artefact"),
        (
            ("-o", "out.pth"),
            "out.pth: sslbd writes no pickles, because reading one can run code; name it out.safetensors",
        ),
        (("--to", "timm", "-o", "out.bin"), "name it out.safetensors and read it with safetensors.torch.load_file"),
    ],
)
def test_bad_usage_is_one_line(checkpoint, args, said, capfd):
    assert said in fails(capfd, checkpoint, *args)


def test_labelled_images_are_an_input_and_what_they_settled_is_in_the_history(checkpoint, tmp_path, capfd):
    data, out = tmp_path / "data.h5", tmp_path / "out"
    dataset = make_dataset(count=40, size=8)
    kinds.write(dataset, str(data))
    said = fails(capfd, checkpoint, "--normalise", "none", "--size", 8, "--data", data, "-o", out)
    assert "its readings do not differ beyond chance: kNN accuracy " in said and not out.exists()
    assert convert("-q", checkpoint, *STEM, "--normalise", "none", "--size", 8, "--data", data, "-o", out) == 0
    (entry,) = kinds.read(str(out), kinds.Encoder).history
    assert {row["option"]: row["sha256"] for row in entry["inputs"]}["--data"] == dataset.sha256
    kinds.write(dataclasses.replace(dataset, labels=None, classes=()), str(data))
    assert "has no labels, which --data needs" in fails(capfd, checkpoint, "--size", 8, "--data", data)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_openai_archive_becomes_an_encoder(tmp_path, capfd):
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.ModuleDict({name: nn.LayerNorm(64) for name in ("ln_pre", "ln_post")})
            self.visual.class_embedding = nn.Parameter(torch.randn(64).half())
            self.visual.positional_embedding = nn.Parameter(torch.randn(5, 64).half())
            self.visual.proj = nn.Parameter(torch.randn(64, 16).half())
            self.visual.conv1 = nn.Conv2d(3, 64, 4, 4, bias=False).half()
            block = nn.ModuleDict({"attn": nn.MultiheadAttention(64, 1), "ln_1": nn.LayerNorm(64)})
            block["ln_2"] = nn.LayerNorm(64)
            block["mlp"] = nn.ModuleDict({"c_fc": nn.Linear(64, 256), "c_proj": nn.Linear(256, 64)})
            self.visual.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([block.half()])})
            self.token_embedding = nn.Embedding(10, 8)
            self.register_buffer("input_resolution", torch.tensor(8))

        def forward(self, x):
            return x

    archive, out = tmp_path / "ViT-B-32.pt", tmp_path / "out"
    clip = Clip()
    torch.jit.save(torch.jit.trace(clip, torch.ones(1)), archive)
    assert convert(archive, "--arch", "clip:layers=1", "-o", out) == 0
    said = capfd.readouterr().err
    assert "read as openai-vit, clip:dim=16,layers=1,width=64,heads=1,patch=4,act=quickgelu under visual" in said
    assert "its text tower does not fit" in said
    assert "left out 2 tensors that are not part of the encoder: input_resolution (1), token_embedding (1)" in said
    got = kinds.read(str(out), kinds.Encoder)
    assert (got.size, got.dim) == (8, 16) and got.mean == pytest.approx((0.4814547, 0.4578275, 0.4082107), abs=1e-7)
    assert (torch.from_numpy(got.tensors["encoder.proj"]) == clip.visual.proj.float()).all()


def test_the_layouts_are_listed(capfd):
    assert convert("--from", "help") == 0
    listed = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(layouts.describe())


def test_wrong_kinds_are_named(tmp_path, capfd):
    tiny = encoder(tmp_path / "tiny", "tiny:width=4")
    assert "is already an sslbd encoder; export it with --to torchvision or --to timm" in fails(capfd, tiny)
    assert f"{tiny}: torchvision has no network tiny:width=4" in fails(capfd, "--to", "torchvision", tiny)
    report = tmp_path / "report"
    kinds.write(kinds.Report(command="probe", results={}), str(report))
    assert "is an HDF5 file, not a checkpoint" in fails(capfd, report)
    assert "expected an encoder, got a report" in fails(capfd, "--to", "timm", report)
    assert "No such file" in fails(capfd, tmp_path / "missing")


def test_an_empty_pipe_is_one_line(capfd):
    with standard_input(os.devnull):
        assert "standard input: is empty" in fails(capfd)
    with standard_input(os.devnull):
        assert "standard input: is empty" in fails(capfd, "--to", "timm")


def test_a_damaged_encoder_is_not_exported(tmp_path, capfd):
    path = Path(encoder(tmp_path / "enc", "resnet18"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in fails(capfd, "--to", "torchvision", path, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
