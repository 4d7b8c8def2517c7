"""RoCLIP: which text an image is matched with, in which epochs, and what the pool holds."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import Tiny, new

SPEC = "roclip:width=32,depth=1,out=16,context=8,pool=12,every=3"


@pytest.fixture
def learner():
    objective = plugin.parse("objective", SPEC)
    encoder = new(Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))
    return objective.learner(encoder, encoder.dim(), 6).eval()


def views(learner):
    texts = [f"a photo of {n} cats" for n in range(6)]
    objective = plugin.parse("objective", SPEC)
    return [torch.rand(6, 3, 16, 16), torch.from_numpy(objective.tokens(learner, texts).ids)]


def test_images_meet_the_nearest_texts_of_the_pool(learner):
    objective, both = plugin.parse("objective", SPEC), views(learner)
    pool, text = learner["pool"], learner["text"]
    before = pool.rows.clone()
    loss = objective.loss(learner, both)
    with torch.no_grad():
        seen = F.normalize(learner["projector"](learner["encoder"](both[0])), dim=1)
        nearest = torch.stack([before[(before @ image).argmax()] for image in seen])
        expected = losses.clip(seen.numpy(), nearest.numpy(), float(text.logit_scale.exp()))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    objective.after_step(learner, 0.1)
    read = F.normalize(text(both[1]), dim=1).detach()
    assert torch.allclose(pool.rows[:6], read, atol=1e-5) and torch.equal(pool.rows[6:], before[6:])


def test_the_epochs_between_are_clips(learner):
    objective, both = plugin.parse("objective", SPEC), views(learner)
    plain = plugin.parse("objective", "clip")
    used, before = [], learner["pool"].rows.clone()
    for epoch in range(6):
        objective.begin_epoch(learner, epoch)
        used.append(learner["pool"].is_used)
        if not used[-1]:
            assert torch.equal(objective.loss(learner, both), plain.loss(learner, both))
            objective.after_step(learner, 0.5)
            assert torch.equal(learner["pool"].rows, before)
    assert used == [True, False, False, True, False, False]


def test_the_pool_is_whole_batches_and_stays_behind(learner):
    objective = plugin.parse("objective", SPEC)
    encoder = new(Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))
    assert len(dataclasses.replace(objective, pool=13).learner(encoder, encoder.dim(), 6)["pool"].rows) == 18
    assert set(objective.kept_parts(learner)) == {"projector", "text"}
