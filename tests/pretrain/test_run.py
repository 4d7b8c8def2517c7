"""Pre-training: what an encoder normalises by, what it must not depend on, and how it fails."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts import container
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.nets import Tiny, save
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Plan
from sslbd_cli.core.watch import Silent
from sslbd_cli.errors import Unsound
from sslbd_cli.pretrain import run
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.run import Monitor, Pretraining


def setup(**changes) -> Pretraining:
    plan = Plan(**({"epochs": 2, "batch": 20, "lr": 0.05} | changes))
    return Pretraining(
        objective=plugin.parse("objective", "simclr"), arch=Tiny(width=4), plan=plan, recipe=Recipe(size=16)
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_the_encoder_normalises_by_the_images_own_statistics(dataset, cpu):
    mean, std = run.channel_statistics(dataset.images)
    pixels = dataset.images.astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-4)
    assert std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-4)
    net = run.pretrain(dataset.images, setup(), Session(cpu))
    assert net.mean.flatten().tolist() == pytest.approx(mean) and not net.training
    pixels = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    fixed = save(run.build(dataset.images, dataclasses.replace(setup(), pixels=pixels), Session(cpu)))
    assert fixed.mean + fixed.std == pytest.approx(pixels[0] + pixels[1])


def test_images_of_one_colour_have_no_zero_deviation():
    assert run.channel_statistics(np.full((5, 3, 4, 4), 255, np.uint8)) == ((1, 1, 1), (0.01, 0.01, 0.01))


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, total, unit, label):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_a_monitor_reports_and_changes_nothing(dataset, fresh, cpu):
    alone = run.pretrain(dataset.images, setup(), Session(cpu))
    notes = Notes()
    monitor = Monitor(fresh.images, fresh.labels, 3)
    watched = run.pretrain(dataset.images, setup(), Session(cpu, 0, notes), monitor=monitor)
    assert same(alone, watched)
    assert len(notes.texts) == 2 and all("kNN accuracy " in text for text in notes.texts)
    assert float(notes.texts[-1].rsplit(" ", 1)[1]) > 0.8


def test_memory_layout_is_no_part_of_the_result_of_saving(dataset, cpu):

    nets = [run.pretrain(dataset.images, dataclasses.replace(setup(), layout=x), Session(cpu)) for x in ("no", "yes")]
    first, second = map(save, nets)
    assert {k: v.shape for k, v in first.tensors.items()} == {k: v.shape for k, v in second.tensors.items()}
    for name, tensor in first.tensors.items():
        assert np.allclose(tensor, second.tensors[name], atol=1e-2), name


def test_a_rate_that_is_too_high_is_unsound(dataset, cpu):
    with pytest.raises(Unsound, match=r"^F0[128] "):
        run.pretrain(dataset.images, setup(lr=1e12, epochs=3), Session(cpu))


class Shrink(Objective):
    """Embed all images alike from a given progress on: scales a last layer's variation away."""

    def learner(self, encoder, dim, batch):
        return torch.nn.ModuleDict({"encoder": encoder})

    def loss(self, learner, views):
        return learner["encoder"](views[0]).var(0).mean() * 0 + learner["encoder"](views[1]).square().mean() * 0

    def after_step(self, learner, progress):
        spans = [(0.2, 0.4), (0.6, 2)]  # a passing collapse in epoch 2, a lasting one from epoch 4 on
        inside = any(low < progress <= high for low, high in spans)
        last = [m for m in learner.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
        with torch.no_grad():
            last.weight.fill_(0.0 if inside else 1.0)
            last.bias.fill_(1.0 if inside else 0.0)


def test_a_lasting_collapse_ends_the_run_and_leaves_the_last_good_checkpoint(dataset, cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(Shrink, "name", "shrink")
    path = str(tmp_path / "run.ckpt")
    notes = Notes()
    made = dataclasses.replace(setup(epochs=5), objective=Shrink())
    with pytest.raises(Unsound, match=r"^F02 .*--checkpoint"):
        run.pretrain(dataset.images, made, Session(cpu, 0, notes), Checkpoint(path, "run"))
    assert len(notes.texts) == 5  # epoch 2 alone did not end it; epochs 4 and 5 did
    header, arrays = container.read_container(path)
    weights = [v for k, v in arrays.items() if k.endswith(".weight") and v.ndim == 1]
    assert json.loads(header)["epoch"] == 3 and all(np.abs(w).min() > 0 for w in weights)
