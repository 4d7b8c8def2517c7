"""A step in portions has the whole batch's gradient, and norms see each image once."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.core import loader
from sslbd_cli.core.session import Session


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 5)
    )


IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def gradients(net: nn.Module, rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Compare all images with one another, so that no portion has its gradient by itself."""
    net.zero_grad()
    unit = F.normalize(in_portions(net, IMAGES, rows), dim=1)
    loss = (unit @ unit.T).exp().mean()
    loss.backward()
    return loss.detach(), [weight.grad.clone() for weight in net.parameters()]


def test_portions_have_the_gradient_of_the_whole_batch(net):
    loss, whole = gradients(net.eval(), 10)
    for rows in (1, 3, 4, 8):
        again, parts = gradients(net, rows)
        assert torch.allclose(again, loss, atol=1e-6), rows
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(parts, whole, strict=True)), rows


def test_norms_in_training_see_each_portion_once(net):
    parts, by_hand = net.train(), copy.deepcopy(net).train()
    gradients(parts, 5)
    with torch.no_grad():
        for portion in IMAGES.split(5):
            by_hand(portion)
    assert all(torch.equal(a, b) for a, b in zip(parts.buffers(), by_hand.buffers(), strict=True))
    assert parts[1].momentum == by_hand[1].momentum and int(parts[1].num_batches_tracked) == 2


def test_nothing_is_stored_without_gradients(net):
    with torch.no_grad():
        assert torch.allclose(in_portions(net.eval(), IMAGES, 3), net(IMAGES), atol=1e-6)


def test_rows_follow_from_what_a_row_stores_and_not_from_the_memory(net, cpu, monkeypatch):
    """A row stores its pixels and the maps of convolution and ReLU: 192 + 2 x 144 numbers of 4 bytes."""
    net.eval()
    buffers = [buffer.clone() for buffer in net.buffers()]
    monkeypatch.setitem(loader.AT_ONCE, "activation bytes", (20_000, 20_000))
    assert {step_rows(net, IMAGES[:2], Session(cpu, memory=memory)) for memory in (1, 1 << 30)} == {10}
    step_rows(net.train(), IMAGES[:2], Session(cpu))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))
