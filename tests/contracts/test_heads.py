"""The laws of `probe --head`, for every file on the shelf."""

import dataclasses

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.features import Labelled
from sslbd_cli.probe.contract import Head


@pytest.fixture(params=plugin.listing("head"))
def head(request, spec) -> Head:
    return plugin.parse("head", spec("head", request.param, epochs=90, steps=80, batch=32))


def blobs(count: int, seed: int, spread: float = 0.5) -> Labelled:
    """Four classes in eight dimensions, as far apart as `spread` is small."""
    gen = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return Labelled(torch.eye(8)[labels] * 2 + 1 + spread * torch.randn(count, 8, generator=gen), labels)


def rows(data: Labelled, start: int, stop: int) -> Labelled:
    views = None if data.views is None else data.views[:, start:stop]
    return Labelled(data.feats[start:stop], data.labels[start:stop], views)


def chooses(head: Head) -> bool:
    """Tell whether a head chooses anything on the validation split: published protocols have nothing to choose."""
    return bool(head.fit(blobs(20, 0), blobs(8, 1), 4, 0).chosen)


def accuracy(predict, data: Labelled) -> float:
    return float((predict(data.feats) == data.labels).float().mean())


def test_classes_that_can_be_separated_are(head):
    fitted = head.fit(blobs(160, 0, 0.3), blobs(40, 1, 0.3), 4, 0)
    guess = fitted.predict(blobs(200, 2, 0.3).feats)
    assert guess.shape == (200,) and guess.dtype == torch.int64
    assert accuracy(fitted.predict, blobs(200, 2, 0.3)) > 0.95


def test_one_seed_is_one_classifier(head):
    test = blobs(200, 2, 1.0).feats
    first, again = (head.fit(blobs(80, 0, 1.0), blobs(20, 1, 1.0), 4, 0) for _ in range(2))
    assert torch.equal(first.predict(test), again.predict(test)) and first.chosen == again.chosen


def test_fitting_leaves_the_features_alone(head):
    train, valid = blobs(80, 0), blobs(20, 1)
    before = train.feats.clone(), valid.feats.clone()
    head.fit(train, valid, 4, 0)
    assert torch.equal(train.feats, before[0]) and torch.equal(valid.feats, before[1])


def test_the_validation_split_decides_where_there_is_a_choice(head):
    """Where labels are noisy, rows that repeat the noise ask for another choice than clean ones."""
    if not chooses(head):
        return
    train = blobs(80, 0, 0.5)
    noisy = dataclasses.replace(train, labels=torch.where(torch.arange(80) % 3 == 0, 3 - train.labels, train.labels))
    by_noise, by_clean = (head.fit(noisy, valid, 4, 0).chosen for valid in (noisy, blobs(80, 1, 0.5)))
    assert by_noise and by_noise.keys() == by_clean.keys()
    assert by_noise != by_clean


def test_all_rows_are_used_where_there_is_no_choice(head):
    """Then it does not matter which of them were held out."""
    if chooses(head):
        return
    data, test = blobs(100, 0, 1.0), blobs(200, 2, 1.0).feats
    splits = [(rows(data, 0, cut), rows(data, cut, 100)) for cut in (50, 80)]
    few, many = (head.fit(*split, 4, 0).predict(test) for split in splits)
    assert torch.equal(few, many)
    assert not torch.equal(head.fit(rows(data, 0, 50), rows(data, 0, 50), 4, 0).predict(test), many)


def test_augmented_views_are_what_it_trains_on(head):
    """A head that asks for views learns what they show, even where the plain features say nothing."""
    if not head.augmented():
        return
    data, blank = blobs(160, 0, 0.3), torch.randn(160, 8, generator=torch.Generator().manual_seed(3)) + 1
    views = torch.stack([data.feats, data.feats + 0.01])
    shown = Labelled(blank, data.labels, views)
    assert accuracy(head.fit(rows(shown, 0, 120), rows(shown, 120, 160), 4, 0).predict, blobs(200, 2, 0.3)) > 0.9


def test_a_class_that_no_row_has_does_no_harm(head):
    assert accuracy(head.fit(blobs(80, 0, 0.3), blobs(20, 1, 0.3), 6, 0).predict, blobs(100, 2, 0.3)) > 0.9


def test_one_row_per_class_is_enough(head):
    few = blobs(4, 0, 0.1)
    assert accuracy(head.fit(few, few, 4, 0).predict, blobs(100, 2, 0.1)) > 0.5


def test_any_seed_will_do(head):
    for seed in (-1, 10**30):
        head.fit(blobs(20, 0), blobs(8, 1), 4, seed)
