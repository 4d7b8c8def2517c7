import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import features, loader, nets
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting
from sslbd_cli.detect.methods.beatrix import Gram
from sslbd_cli.errors import InputError
from wired import make_scenes, make_wired


def test_gram_features_agree_with_loops():
    maps = torch.randn(2, 5, 3, 2).clamp(min=0)
    channels = torch.tensor([0, 2, 4])
    grams = Gram("any", 0, channels, 3, 2.0).pooled(maps)
    flat = maps.double().numpy().reshape(2, 5, 6)[:, [0, 2, 4]] / 2
    for row in range(2):
        pairs = [(i, j) for i in range(3) for j in range(i, 3)]
        expected = [(flat[row, i] ** p @ flat[row, j] ** p) ** (1 / p) for p in (1, 2, 3) for i, j in pairs]
        assert grams[row].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_score_is_the_mean_overflow_of_the_bounds(cpu):
    method, setting = plugin.parse("detector", "beatrix:orders=2,width=1.5"), Setting(make_wired(), Session(cpu))
    images = make_scenes(60, 2).images
    state = method.learn(images, setting)
    low, high = state["low"][0].numpy(), state["high"][0].numpy()
    ((_, grams),) = method._grams(images[:8], state, setting)
    grams = grams.numpy()
    below, above = np.maximum(low - grams, 0), np.maximum(grams - high, 0)
    expected = (below / np.maximum(np.abs(low), 1e-6) + above / np.maximum(np.abs(high), 1e-6)).mean(1)
    assert method.look(images[:8], state, setting).columns["score"] == pytest.approx(expected, rel=1e-4)
    assert (expected > 0).any()


def test_clusters_have_bounds_of_their_own(cpu):
    method = plugin.parse("detector", "beatrix:orders=1,clusters=2")
    state = method.learn(make_scenes(80, 2).images, Setting(make_wired(), Session(cpu)))
    assert len(state["low"]) == 2 and not torch.equal(state["low"][0], state["low"][1])


def test_too_few_images_for_the_clusters_are_refused(cpu):
    method = plugin.parse("detector", "beatrix:clusters=5")
    with pytest.raises(InputError, match="5 clusters of 80 images; 20 each are the least"):
        method.learn(make_scenes(80, 2).images, Setting(make_wired(), Session(cpu)))


def test_the_encoder_is_digested_once_and_images_of_all_batches_get_the_bounds_of_their_cluster(cpu, monkeypatch):
    method, setting = plugin.parse("detector", "beatrix:orders=1,clusters=2"), Setting(make_wired(), Session(cpu))
    images = make_scenes(80, 2).images
    state = method.learn(images, setting)
    whole, digests = method.look(images, state, setting).columns["score"], []
    monkeypatch.setitem(loader.AT_ONCE, "gram numbers", (32 * state["low"].shape[1], 1))
    monkeypatch.setattr(features, "digest_of", lambda net: digests.append(net) or b"")
    assert method.look(images, state, setting).columns["score"] == pytest.approx(whole, rel=1e-4)
    assert len(digests) == 1


def test_timms_convolutional_networks_are_read(cpu):
    net = nets.load(make_encoder(size=32, arch=nets.Timm(model="test_efficientnet")))
    method, images = plugin.parse("detector", "beatrix:orders=1,channels=4"), make_dataset(count=24, size=32).images
    setting = Setting(net, Session(cpu))
    state = method.learn(images, setting)
    assert method._layer(setting) == "blocks.3"
    assert np.isfinite(method.look(images, state, setting).score).all()
