"""The laws of `badencoder --method`, for every file on the shelf."""

from dataclasses import replace

import pytest
import torch

from micro import Interrupted, make_dataset, same_tensors, weights
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.checkpoint import is_checkpoint
from sslbd_cli.badencoder.contract import Attack, Plot
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint


@pytest.fixture(params=plugin.listing("attack"))
def attack(request, spec) -> Attack:
    return plugin.parse("attack", spec("attack", request.param, epochs=2, batch=30, copies=2))


@pytest.fixture
def plot(dataset) -> Plot:
    triggers = tuple(plugin.parse("trigger", text) for text in ("patch:size=5", "patch:size=5,where=tl,fill=white"))
    references = tuple(torch.from_numpy(dataset.images[rows]) for rows in ([0, 3], [1, 4, 7]))
    return Plot(dataset.images, triggers, references)


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return nets.load(encoder)


def test_the_clean_encoder_is_left_as_it_was(attack, plot, net, cpu):
    before, asked = weights(net), [p.requires_grad for p in net.parameters()]
    shadow = plot.shadow.copy()
    attack.run(net, plot, Session(cpu))
    assert same_tensors(weights(net), before) and not net.training
    assert [p.requires_grad for p in net.parameters()] == asked and all(p.grad is None for p in net.parameters())
    assert (plot.shadow == shadow).all()


def test_the_result_is_an_encoder_of_the_same_form(attack, plot, net, cpu, tmp_path):
    made = attack.run(net, plot, Session(cpu))
    assert not made.encoder.training and not same_tensors(weights(made.encoder), weights(net))
    kinds.write(nets.save(made.encoder), str(tmp_path / "a"))
    again = kinds.read(str(tmp_path / "a"), kinds.Encoder)
    clean = nets.save(net)
    assert (again.arch, again.size, again.mean, again.std, again.dim) == (
        clean.arch, clean.size, clean.mean, clean.std, clean.dim,
    )  # fmt: skip
    assert {k: (t.shape, t.dtype) for k, t in again.tensors.items()} == {
        k: (t.shape, t.dtype) for k, t in clean.tensors.items()
    }
    nets.load(again)


def test_batch_normalisation_is_frozen_bit_for_bit(attack, plot, net, cpu):
    made = attack.run(net, plot, Session(cpu))
    layers = [n for n, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert layers
    before, after = weights(net), weights(made.encoder)
    for name in (name for name in before if name.rsplit(".", 1)[0] in layers):
        assert torch.equal(before[name], after[name]), name


def test_one_seed_is_one_encoder(attack, plot, net, cpu):
    first, again, other = (attack.run(net, plot, Session(cpu, seed)) for seed in (0, 0, 1))
    assert same_tensors(weights(first.encoder), weights(again.encoder)) and first.terms == again.terms
    assert not same_tensors(weights(first.encoder), weights(other.encoder))


def test_interrupted_and_resumed_is_the_same_encoder(attack, plot, net, cpu, tmp_path):
    """With a trigger whose place is drawn anew in each step, too."""
    wandering = replace(plot, triggers=(plot.triggers[0], plugin.parse("trigger", "patch:size=4,where=random")))
    stored = Checkpoint(str(tmp_path / "c"), "run")
    whole = attack.run(net, wandering, Session(cpu))
    with pytest.raises(KeyboardInterrupt):
        attack.run(net, wandering, Session(cpu, watch=Interrupted(2)), stored)
    assert is_checkpoint(str(tmp_path / "c"))
    resumed = attack.run(net, wandering, Session(cpu), replace(stored, resume=True))
    assert same_tensors(weights(resumed.encoder), weights(whole.encoder)) and resumed.terms == whole.terms


def test_its_terms_are_cosines_that_the_gate_can_read(attack, plot, net, cpu):
    terms = attack.run(net, plot, Session(cpu)).terms
    for name in ("effectiveness", "utility"):
        assert -1.0001 <= terms[name] <= 1


def test_several_triggers_work_like_one(attack, plot, net, cpu):
    single = Plot(plot.shadow, plot.triggers[:1], plot.references[:1])
    terms = [attack.run(net, given, Session(cpu)).terms for given in (single, plot)]
    assert terms[0].keys() == terms[1].keys() and terms[0] != terms[1]


def test_fewer_shadow_images_than_a_batch_are_one_batch(attack, plot, net, cpu):
    few = make_dataset(count=4)
    attack.run(net, Plot(few.images, plot.triggers, plot.references), Session(cpu))
