"""Fine-pruning: the dormant channels go, and stay away; so many as clean images bear."""

import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import loader, nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.purify.contract import Supplies
from wired import make_scenes, make_wired


def prune(net, images, cpu, keys):
    return plugin.parse("purifier", f"fine-prune:epochs=1,batch=20,{keys}").clean(net, Supplies(images), Session(cpu))


@pytest.mark.parametrize("objective", ["simclr", "consistency"])
def test_the_most_dormant_channels_are_off_after_the_training_too(cpu, objective):
    data, net = make_scenes(80), make_wired()
    activity = (
        embed(net, data.images, Session(cpu)).abs().mean(0)
    )  # the embedding is the mean of what comes after the last ReLU
    purified = prune(net, data.images, cpu, f"share=0.25,objective={objective}")
    dead = embed(purified, data.images, Session(cpu)).abs().amax(0) == 0
    lowest = activity.argsort(stable=True)[:8].tolist()
    assert 0 in lowest and set(lowest) <= set(dead.nonzero().flatten().tolist()) and not dead.all()


def test_hidden_channels_of_a_transformer_stay_off(cpu):
    net = nets.load(make_encoder(arch=nets.ViT(width=12, depth=4)))
    purified = prune(net, make_dataset().images, cpu, "share=0.5,stages=2")
    off = [int((block.mlp.fc1.weight == 0).all(1).sum()) for block in purified.encoder.blocks]
    assert off == [0, 0, 24, 24]
    assert all((b.mlp.fc1.bias[(b.mlp.fc1.weight == 0).all(1)] == 0).all() for b in purified.encoder.blocks[2:])


def test_a_larger_drop_prunes_more(cpu):
    data, net = make_scenes(120), make_wired(backdoor=False)

    def pruned(drop: float) -> int:
        last = prune(net, data.images, cpu, f"drop={drop}").encoder[10]
        return int((last.weight == 0).sum())

    assert pruned(0.0) <= pruned(0.1) < pruned(1.0) and pruned(1.0) == round(0.95 * 32)


def test_the_ranking_is_by_mean_activation_over_all_chunks(cpu, monkeypatch):
    from sslbd_cli.core.stages import channels
    from sslbd_cli.purify.methods.fine_prune import _ranks

    net, images = make_wired(), make_scenes(70).images
    group = channels(net, 1)[0]
    expected = embed(net, images, Session(cpu)).mean(0).argsort(stable=True).argsort()
    assert torch.equal(_ranks(net, group, images, Session(cpu)), expected)
    monkeypatch.setattr(loader, "LADDER", (16,))
    assert torch.equal(_ranks(net, group, images, Session(cpu)), expected)
    assert np.array_equal(images, make_scenes(70).images)
