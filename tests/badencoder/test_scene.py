"""Training the last stages alone: what enters them is computed once if the memory holds it; no result depends on it."""

import pytest
import torch

from micro import same_tensors, weights
from sslbd_cli import plugin
from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.core.stages import stages


@pytest.fixture
def plot(dataset) -> Plot:
    triggers = tuple(plugin.parse("trigger", text) for text in ("patch:size=5", "patch:size=4,where=random"))
    return Plot(dataset.images, triggers, tuple(torch.from_numpy(dataset.images[rows]) for rows in ([0, 3], [1])))


def attack(keys: str):
    return plugin.parse("attack", f"badencoder:epochs=2,batch=30,copies=2,lr=0.01,{keys}")


def test_stages_before_the_last_ones_stay_as_they_were(encoder, plot, cpu):
    net = nets.load(encoder)
    for count in (1, 3):
        made = attack(f"stages={count}").run(net, plot, Session(cpu)).encoder
        for part, before in zip(stages(made), stages(net), strict=True):
            moved = [not torch.equal(w, before.modules[name].weight) for name, module in part.modules.items()
                     if isinstance(module, torch.nn.Conv2d) for w in [module.weight]]  # fmt: skip
            assert all(moved) if part.name in [s.name for s in stages(net)[-count:]] else not any(moved), (count, part)


def test_what_is_known_beforehand_changes_no_result(encoder, plot, cpu):
    """With little memory nothing is stored."""
    net = nets.load(encoder)
    whole, again = (
        attack("stages=2").run(net, plot, Session(cpu, memory=memory)).encoder for memory in (1 << 30, 400_000)
    )
    pairs = zip(weights(whole).values(), weights(again).values(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)
    assert not same_tensors(weights(whole), weights(net))
