"""The laws of `purify --method`, for every file on the shelf."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from micro import Interrupted, make_dataset, same_tensors, weights
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.checkpoint import is_checkpoint
from sslbd_cli.core import nets
from sslbd_cli.core.features import embed, knn_predict
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import mean_cosine
from sslbd_cli.core.stages import stages
from sslbd_cli.core.train import Checkpoint
from sslbd_cli.purify.contract import DatasetPurifier, EncoderPurifier, Supplies
from sslbd_cli.triggers._contract import triggered_images
from sslbd_cli.triggers._found import Witness
from wired import TRIGGER, make_scenes, make_wired
from worded import captions_for, worded

SHELF = [plugin.parse("purifier", name) for name in plugin.listing("purifier")]


@pytest.fixture(params=[p.name for p in SHELF if isinstance(p, EncoderPurifier)])
def purifier(request, spec) -> EncoderPurifier:
    rate = {"lr": 0.003} if plugin.parse("purifier", request.param).reads_captions else {}
    return plugin.parse("purifier", spec("purifier", request.param, epochs=3, batch=20, **rate))


def test_a_purifier_says_what_it_cleans_and_with_what():
    assert all(isinstance(p, EncoderPurifier) != isinstance(p, DatasetPurifier) for p in SHELF)
    assert all(
        {*p.needs, *p.takes} <= {"data", "report", "keep_quantile", "limit", "checkpoint", "resume"} for p in SHELF
    )


def supplies(data) -> Supplies:
    """Clean images, and a trigger found: a white square of five pixels near the lower right corner."""
    keep, add = torch.ones(1, 16, 16), torch.zeros(3, 16, 16)
    keep[:, 10:15, 10:15], add[:, 10:15, 10:15] = 0, 1
    return Supplies(data.images, Witness(keep, add), captions=captions_for(data.labels))


@pytest.fixture(params=[p.name for p in SHELF if isinstance(p, DatasetPurifier)])
def sieve(request) -> DatasetPurifier:
    return plugin.parse("purifier", request.param)


def test_what_is_flagged_goes_and_a_quantile_keeps_its_share(sieve):
    scores, flagged = np.array([0.5, 3.0, -1.0, 2.0, 0.0]), np.array([False, True, False, False, True])
    assert sieve.keep(scores, flagged, None).tolist() == [True, False, True, True, False]
    assert sieve.keep(scores, flagged, 0.4).tolist() == [False, False, True, False, True]
    assert scores.tolist() == [0.5, 3.0, -1.0, 2.0, 0.0] and flagged.sum() == 2


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return worded(nets.load(encoder))


def test_the_input_is_left_as_it_was(purifier, net, dataset, cpu):
    before, images = weights(net), dataset.images.copy()
    asked = [p.requires_grad for p in net.parameters()]
    purifier.clean(net, supplies(dataset), Session(cpu))
    assert same_tensors(weights(net), before) and not net.training
    assert [p.requires_grad for p in net.parameters()] == asked and all(p.grad is None for p in net.parameters())
    assert np.array_equal(dataset.images, images)


def test_the_output_loads_and_differs(purifier, net, dataset, cpu, tmp_path):
    purified = purifier.clean(net, supplies(dataset), Session(cpu))
    assert not purified.training and not same_tensors(weights(purified), weights(net))
    kinds.write(nets.save(purified), str(tmp_path / "a"))
    loaded = nets.load(kinds.read(str(tmp_path / "a"), kinds.Encoder))
    assert loaded.size == net.size and loaded.dim() == net.dim() and str(loaded.arch) == str(net.arch)


def test_frozen_stages_keep_their_weights_and_statistics(net, dataset, cpu):
    """Of the last stage, and only of it, weights change; all purifiers that tune the encoder know the key."""
    outside = {f"encoder.{name}" for stage in stages(net)[:-1] for name in stage.modules}
    for name in ("finetune", "bcu", "unlearn"):
        method = plugin.parse("purifier", f"{name}:stages=1,epochs=2,batch=20")
        before, after = weights(net), weights(method.clean(net, supplies(dataset), Session(cpu)))
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed and not {key for key in changed if key.rpartition(".")[0] in outside}, name


def test_one_seed_is_one_encoder(purifier, net, dataset, cpu):
    first, again, other = (purifier.clean(net, supplies(dataset), Session(cpu, seed)) for seed in (0, 0, 1))
    assert same_tensors(weights(first), weights(again)) and not same_tensors(weights(first), weights(other))


def test_interrupted_and_resumed_is_the_same_encoder(purifier, net, dataset, cpu, tmp_path):
    given, stored = supplies(dataset), Checkpoint(str(tmp_path / "c"), "run")
    whole = purifier.clean(net, given, Session(cpu))
    with pytest.raises(KeyboardInterrupt):
        purifier.clean(net, replace(given, checkpoint=stored), Session(cpu, watch=Interrupted(2)))
    assert is_checkpoint(str(tmp_path / "c"))
    again = replace(given, checkpoint=replace(stored, resume=True))
    assert same_tensors(weights(purifier.clean(net, again, Session(cpu))), weights(whole))


def test_clean_images_are_still_told_apart(purifier, net, dataset, cpu):
    purified, fresh = purifier.clean(net, supplies(dataset), Session(cpu)), make_dataset(count=30, seed=1)
    labels = torch.from_numpy(dataset.labels)
    guess = knn_predict(
        embed(purified, dataset.images, Session(cpu)), labels, embed(purified, fresh.images, Session(cpu)), 3, k=5
    )
    assert np.mean(guess.numpy() == fresh.labels) >= 0.9


def test_a_planted_backdoor_is_weakened_and_a_clean_twin_is_spared(purifier, cpu):
    data, fresh = make_scenes(120), make_scenes(80, seed=1)
    stamped = triggered_images(fresh, plugin.parse("trigger", TRIGGER), 0)

    def steadiness(net: nets.ImageEncoder) -> float:
        return mean_cosine(embed(net, fresh.images, Session(cpu)), embed(net, stamped, Session(cpu)))

    backdoored, clean = worded(make_wired()), worded(make_wired(backdoor=False))
    given = supplies(data)
    purified, control = (purifier.clean(net, given, Session(cpu)) for net in (backdoored, clean))
    assert steadiness(backdoored) < 0.2 < 0.7 < steadiness(clean)
    assert steadiness(purified) > steadiness(backdoored) + 0.1 and steadiness(control) > 0.7
    labels = torch.from_numpy(data.labels)
    guess = knn_predict(
        embed(control, data.images, Session(cpu)), labels, embed(control, fresh.images, Session(cpu)), 4, k=5
    )
    assert np.mean(guess.numpy() == fresh.labels) >= 0.9
