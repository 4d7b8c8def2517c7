"""Embeddings are kept by content: an image goes through an encoder once in a run, and never by mistake not at all."""

import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli.core import nets
from sslbd_cli.core.cache import EmbeddingCache, digest_of
from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed, embed_once
from sslbd_cli.core.footprint import TRIAL
from sslbd_cli.core.session import Session, TimeBudget
from sslbd_cli.errors import OutOfTime


class Counting(torch.nn.Module):
    """An encoder that counts the images which go through it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net, self.seen = nets.load(make_encoder(seed=seed)), 0
        self.size = self.net.size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.net(x)


@pytest.fixture
def session(cpu):
    return Session(cpu)


@pytest.fixture
def images():
    return make_dataset(count=40).images


def test_an_image_goes_through_an_encoder_once(session, images):
    net = Counting()
    whole = embed_once(net, images, session)
    assert net.seen == 40 + TRIAL and torch.equal(whole, embed(Counting(), images, session))
    part = embed_once(net, images[[7, 3, 7]], session)
    assert net.seen == 40 + TRIAL and torch.equal(part, whole[[7, 3, 7]])
    more = np.concatenate([images[:5], 255 - images[:5]])
    assert torch.allclose(embed_once(net, more, session), embed(Counting(), more, session), atol=1e-6)
    assert net.seen == 45 + TRIAL


def test_an_image_that_is_there_twice_is_embedded_once_and_keeps_its_places(session, images):
    net = Counting()
    feats = embed_once(net, images[[0, 1, 0, 2, 1]], session)
    assert net.seen == 3 + TRIAL
    assert torch.allclose(feats, embed(Counting(), images[[0, 1, 0, 2, 1]], session), atol=1e-6)


def test_another_encoder_or_one_trained_further_is_asked_anew(session, images):
    first, second = Counting(0), Counting(1)
    assert not torch.equal(embed_once(first, images, session), embed_once(second, images, session))
    assert first.seen == second.seen == 40 + TRIAL
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert torch.equal(embed_once(first, images, session), embed(first, images, session))
    assert digest_of(first) != digest_of(Counting(0)) and digest_of(Counting(0)) == digest_of(Counting(0))


def test_an_encoder_that_normalises_images_otherwise_is_another_encoder(session, images):
    first, second = (nets.load(make_encoder()) for _ in range(2))
    second.mean += 0.2  # a buffer that no file stores
    embed_once(first, images, session)
    assert torch.equal(embed_once(second, images, session), embed(second, images, session))


def test_equal_weights_with_other_settings_are_another_encoder():
    narrow, wide = (torch.nn.Sequential(torch.nn.AvgPool2d(size)) for size in (1, 2))
    assert digest_of(narrow) != digest_of(wide)


def test_an_image_changed_in_place_is_embedded_anew(session, images):
    net, changed = Counting(), images.copy()
    embed_once(net, changed, session)
    changed[0] = 255 - changed[0]
    embed_once(net, changed, session)
    assert net.seen == 40 + 2 + TRIAL  # a single image goes twice


def test_a_full_cache_forgets_the_oldest_encoder_and_still_answers(cpu, images):
    first, second = Counting(0), Counting(1)
    width = embed(first, images, Session(cpu)).nbytes
    session = Session(cpu, embeddings=EmbeddingCache(limit=width))
    wanted = embed_once(first, images, session)
    embed_once(second, images, session)
    first.seen = 0
    assert torch.equal(embed_once(first, images, session), wanted) and first.seen == 40


def test_a_full_cache_keeps_the_encoder_that_was_used_last(cpu, images):
    first, second, third = Counting(0), Counting(1), Counting(2)
    session = Session(cpu, embeddings=EmbeddingCache(limit=2 * embed(first, images, Session(cpu)).nbytes))
    for net in (first, second, first, third):
        embed_once(net, images, session)
    first.seen = second.seen = 0
    embed_once(first, images, session)
    assert first.seen == 0
    embed_once(second, images, session)
    assert second.seen == 40


def test_precisions_are_kept_apart_and_a_stream_keeps_nothing(cpu, images):
    session = Session(Device(cpu.torch, "bf16"))
    rough = embed_once(Counting(), images, session)
    exact = embed_once(Counting(), images, session.exact())
    assert torch.equal(exact, embed(Counting(), images, Session(cpu))) and not torch.equal(rough, exact)
    net, stream = Counting(), Session(cpu, embeddings=None)
    assert torch.equal(embed_once(net, images, stream), embed_once(net, images, stream)) and net.seen == 80 + TRIAL


def test_a_spent_budget_stops_before_anything_is_embedded(cpu, images):
    net = Counting()
    budget = TimeBudget(0.001)
    budget.started -= 1
    with pytest.raises(OutOfTime, match=r"the budget of 0\.001 s was spent"):
        embed_once(net, images, Session(cpu, budget=budget))
    assert net.seen == 0
