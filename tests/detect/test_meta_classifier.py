"""Meta-classifiers of encoders against naive loops, and the laws that make a held-out shadow held out."""

import math

import numpy as np
import pytest
import torch

from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.session import Session
from sslbd_cli.detect import meta_classifier
from sslbd_cli.detect.meta_classifier import Examples, MetaClassifiers, Tuning

K, N, S = 3, 4, 5


def make_encoder(seed: int) -> nets.ImageEncoder:
    return nets.new(nets.Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3, generator(seed, "weights")).eval()


@pytest.fixture
def starts() -> torch.Tensor:
    return torch.rand(K, N, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def examples(cpu) -> Examples:
    members = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1], [0, 1, 1, 1, 0]]).bool()
    encoders = tuple(meta_classifier.freeze_twin(make_encoder(seed), cpu) for seed in range(S))
    return Examples(encoders, torch.tensor([False, False, False, True, True]), members)


def panel(starts: torch.Tensor, width: int = N * (N - 1) // 2) -> MetaClassifiers:
    return MetaClassifiers(starts, width, 3, [generator(number, "panel") for number in range(len(starts))])


def test_answers_are_the_cosines_between_queries_one_by_one(starts):
    net = make_encoder(0)
    answers = meta_classifier.answers(net, starts, "gram")
    raw = meta_classifier.answers(net, starts, "raw")
    for own, cosines, flat in zip(starts, answers, raw, strict=True):
        feats = [net(query[None])[0].detach() for query in own]
        pairs = [float(a @ b / (a.norm() * b.norm())) for i, a in enumerate(feats) for b in feats[i + 1 :]]
        np.testing.assert_allclose(cosines.detach(), pairs, rtol=1e-4)
        np.testing.assert_allclose(flat.detach(), torch.cat([f / f.norm() for f in feats]), rtol=1e-4, atol=1e-6)


def test_cosines_do_not_change_with_the_axes(starts):
    net, turned = make_encoder(0), make_encoder(0)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    turned.encoder.append(torch.nn.Linear(16, 16, bias=False))
    turned.encoder[-1].weight.data = axes
    torch.testing.assert_close(*(meta_classifier.answers(n, starts, "gram") for n in (net, turned)))
    assert (
        meta_classifier.answers(net, starts, "raw") - meta_classifier.answers(turned, starts, "raw")
    ).abs().max() > 0.1


def test_answers_are_scaled_by_the_members_alone(examples):
    responses = torch.rand(K, S, 6, generator=torch.Generator().manual_seed(3))
    mean, spread = meta_classifier.scale(responses, examples.members)
    for k in range(K):
        own = responses[k][examples.members[k]].numpy()
        sd = own.std(0)
        np.testing.assert_allclose(mean[k, 0], own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(spread[k, 0], np.maximum(sd, 0.1 * sd.mean()), rtol=1e-3)


def test_the_two_class_loss_weighs_both_kinds_the_same(examples):
    scores = torch.randn(K, S, generator=torch.Generator().manual_seed(4))
    expected = 0.0
    for k in range(K):
        for kind in (False, True):
            rows = [s for s in range(S) if examples.members[k, s] and bool(examples.is_backdoored[s]) == kind]
            for s in rows:
                p = 1 / (1 + math.exp(-float(scores[k, s])))
                expected -= math.log(p if kind else 1 - p) / (2 * len(rows))
    assert float(meta_classifier.two_class_loss(scores, examples)) == pytest.approx(expected, rel=1e-4)


def test_the_one_class_loss_is_the_papers(examples, starts):
    scores, made = torch.randn(K, S, generator=torch.Generator().manual_seed(4)), panel(starts)
    expected = 0.5 * sum(float((w.detach() ** 2).sum()) for w in (made.inner, made.outer))
    for k in range(K):
        own = scores[k][examples.members[k]].numpy()
        radius = np.quantile(own, 0.1)
        expected += np.maximum(0, radius - own).mean() / 0.1 - radius
    assert float(meta_classifier.one_class_loss(made, scores, examples).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("one_class", [False, True])
def test_what_a_held_out_shadow_is_changes_nothing_of_its_judge(examples, starts, cpu, one_class):
    tuning = Tuning(one_class=one_class, steps=4, lr=0.01)
    nets_ = (*examples.encoders[:2], meta_classifier.freeze_twin(make_encoder(77), cpu), *examples.encoders[3:])
    other = Examples(nets_, examples.is_backdoored, examples.members)  # shadow 2 is held out of judge 0 alone
    first, second = (
        meta_classifier.tune(e, panel(starts), tuning, Session(cpu), lambda: None) for e in (examples, other)
    )
    assert torch.equal(first.queries[0], second.queries[0]) and torch.equal(first.inner[0], second.inner[0])
    assert not torch.equal(first.queries[1], second.queries[1])


def test_tuning_lowers_the_loss_moves_the_queries_and_keeps_them_images(examples, starts, cpu):
    def loss_of(made: MetaClassifiers) -> float:
        responses = meta_classifier.ask_members(made, examples, "gram")
        mean, spread = meta_classifier.scale(responses, examples.members)
        return float(meta_classifier.two_class_loss(made((responses - mean) / spread), examples))

    before = loss_of(panel(starts))
    steps = []
    made = meta_classifier.tune(
        examples, panel(starts), Tuning(steps=20, lr=0.02), Session(cpu), lambda: steps.append(1)
    )
    assert loss_of(made) < 0.5 * before and len(steps) == 20
    assert (made.queries - starts).abs().max() > 0.05
    assert made.queries.min() >= 0 and made.queries.max() <= 1


def test_queries_start_like_the_images():
    images = np.random.default_rng(0).integers(100, 140, (50, 3, 16, 16), dtype=np.uint8)
    images[:, 0] //= 4
    noise = meta_classifier.noise_like(images, 200, generator(0, "a"))
    for channel in range(3):
        assert float(noise[:, channel].mean()) == pytest.approx(images[:, channel].mean() / 255, abs=0.01)
        assert float(noise[:, channel].std()) == pytest.approx(images[:, channel].std() / 255, rel=0.1)
    some = meta_classifier.some_of(images, 5, generator(0, "a")).mul(255).round().numpy()
    assert all((images == one).all((1, 2, 3)).any() for one in some)
