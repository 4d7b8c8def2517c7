"""The laws of --select, for every file on the shelf."""

import dataclasses

import numpy as np
import pytest

from sslbd_cli.core import plugin, poison
from sslbd_cli.core.bases import Selector
from sslbd_cli.core.device import generator
from sslbd_cli.core.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 4, 100)
POOLS = {
    "count": np.arange(100),
    "labels": LABELS,
    "feats": np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32),
}


@pytest.fixture(params=plugin.listing("select"))
def selector(request, spec) -> Selector:
    return plugin.parse("select", spec("select", request.param))


def choose(selector: Selector, budget: int, seed: int = 0, target: int = 2) -> np.ndarray:
    pool = POOLS[selector.needs].copy()
    rows = selector(pool, target, budget, generator(seed))
    assert np.array_equal(pool, POOLS[selector.needs])
    return rows


def test_exactly_the_budget_distinct_and_ascending(selector):
    eligible = selector.eligible(POOLS[selector.needs], 2)
    for budget in (1, 7, eligible):
        rows = choose(selector, budget)
        assert len(rows) == budget and (np.diff(rows) > 0).all()
        assert 0 <= rows[0] and rows[-1] < 100


def test_one_seed_is_one_choice(selector):
    assert np.array_equal(choose(selector, 7), choose(selector, 7))


def test_a_budget_that_cannot_be_met_is_refused(selector):
    eligible = selector.eligible(POOLS[selector.needs], 2)
    for budget in (0, -1, eligible + 1):
        with pytest.raises(InputError, match=f"{eligible} are eligible"):
            choose(selector, budget)


def test_label_free_selectors_work_without_labels(selector, dataset):
    bare = dataclasses.replace(dataset, labels=None)
    if selector.needs == "count":
        assert len(poison.choose(bare, selector, None, poison.Budget(count=5), 0)) == 5
    elif selector.needs == "labels":
        with pytest.raises(InputError, match="no labels"):
            poison.choose(bare, selector, 1, poison.Budget(count=5), 0)


def test_label_chooses_the_target_class_alone_and_random_does_not():
    label, random = (plugin.parse("select", name) for name in ("label", "random"))
    assert set(LABELS[choose(label, 10)]) == {2}
    assert set(LABELS[choose(random, 50)]) == {0, 1, 2, 3}
    for selector in (label, random):
        assert not np.array_equal(choose(selector, 7, seed=0), choose(selector, 7, seed=1))
