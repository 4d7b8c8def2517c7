"""The laws of --select, for every file on the shelf."""

import dataclasses

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.choose import choose
from sslbd_cli.poison.contract import Selector, SelectorPool

LABELS = np.random.default_rng(0).integers(0, 4, 100)
FEATS = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32))
LISTED = np.random.default_rng(2).permutation(100)[:40]
FULL = SelectorPool(count=100, target=2, classes=4, labels=LABELS, feats=FEATS, listed_rows=LISTED)
LABEL_FREE = [name for name in plugin.listing("select") if name != "label"]


@pytest.fixture(params=plugin.listing("select"))
def selector(request, spec) -> Selector:
    return plugin.parse("select", spec("select", request.param))


def select(selector: Selector, budget: int, seed: int = 0, **changes: object) -> np.ndarray:
    pool = dataclasses.replace(FULL, **changes)
    before = {"labels": LABELS.copy(), "feats": FEATS.clone(), "listed_rows": LISTED.copy()}
    rows = selector(pool, budget, generator(seed))
    for name, array in before.items():
        assert (np.asarray(array) == np.asarray(getattr(FULL, name))).all(), f"{name} changed"
    return rows


def test_exactly_the_budget_distinct_and_ascending(selector):
    for budget in (1, 7, 10):
        rows = select(selector, budget)
        assert len(rows) == budget and rows.dtype == np.int64 and (np.diff(rows) > 0).all()
        assert 0 <= rows[0] and rows[-1] < 100


@pytest.mark.parametrize("name", plugin.listing("select"))
def test_all_that_are_eligible_may_be_asked_for_and_no_more(name, spec):
    selector = plugin.parse("select", spec("select", name, clusters=1))  # one cluster has every image
    eligible = selector.eligible(FULL)
    assert len(select(selector, eligible)) == eligible
    for budget in (0, -1, eligible + 1):
        with pytest.raises(InputError, match=f"{eligible} are eligible"):
            select(selector, budget)


def test_one_seed_is_one_choice(selector):
    assert np.array_equal(select(selector, 7), select(selector, 7))


def test_only_what_is_needed_is_looked_at(selector):
    """A selector that asks for one thing gets the same rows when all else is missing."""
    alone = {name: None for name in ("labels", "feats", "listed_rows") if name != selector.needs}
    assert np.array_equal(select(selector, 7), select(selector, 7, **alone))


@pytest.mark.parametrize("name", LABEL_FREE)
def test_label_free_selectors_choose_the_same_without_labels(name, spec, dataset):
    selector = plugin.parse("select", spec("select", name))
    assert selector.needs != "labels"
    feats = torch.randn(60, 8, generator=generator(0))
    pool = SelectorPool(count=60, classes=3, feats=feats, listed_rows=np.arange(20))
    bare, lying = (dataclasses.replace(dataset, labels=labels) for labels in (None, np.zeros(60, np.int64)))
    first, second, third = (choose(data, selector, pool, 5, 0) for data in (dataset, bare, lying))
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_what_is_missing_is_asked_for(selector, dataset):
    bare = dataclasses.replace(dataset, labels=None)
    asked = {"labels": "the dataset has no labels", "feats": "--encoder", "listed_rows": "--indices"}
    if selector.needs in asked:
        with pytest.raises(InputError, match=asked[selector.needs]):
            choose(bare, selector, SelectorPool(count=60, target=1, classes=3), 5, 0)


def test_label_chooses_the_target_class_alone_and_random_does_not():
    label, random = (plugin.parse("select", name) for name in ("label", "random"))
    assert set(LABELS[select(label, 10)]) == {2}
    assert set(LABELS[select(random, 50)]) == {0, 1, 2, 3}
    for selector in (label, random):
        assert not np.array_equal(select(selector, 7, seed=0), select(selector, 7, seed=1))
