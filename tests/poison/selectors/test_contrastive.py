"""Contrastive selection on directions whose clusters are known, and against sums over the whole similarity matrix."""

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import SelectorPool


def mixture(count=2000, clusters=10, dim=64, spread=0.12, seed=0):
    """Directions around unit means, some tighter than others: a von Mises-Fisher mixture but for the normalisation."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(clusters, dim))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    labels = rng.integers(0, clusters, count)
    wide = spread * np.linspace(0.8, 1.2, clusters)[labels, None]
    feats = means[labels] + wide * rng.normal(size=(count, dim))
    return torch.from_numpy((feats * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)), labels


def select(spec, feats, budget):
    return plugin.parse("select", spec)(SelectorPool(count=len(feats), feats=feats), budget, generator(0))


def purity(labels, rows):
    return np.bincount(labels[rows]).max() / len(rows)


@pytest.mark.parametrize("spec", ["contrastive", "contrastive:arm=positive", "contrastive:criterion=total"])
def test_the_poisons_are_of_one_cluster(spec):
    feats, labels = mixture()
    rows = select(spec, feats, 120)  # 0.6 of a cluster
    assert purity(labels, rows) >= 0.95
    assert purity(labels, select("random", feats, 120)) < 0.3


def dense(feats):
    z = feats.double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T


def sets_of_anchors(s, budget):
    return np.argsort(-s, axis=1, kind="stable")[:, :budget]


@pytest.mark.parametrize(
    ("arm", "near", "after"), [("both", 1, -1), ("positive", 1, 0), ("negative", 0, -1)], ids=["con", "conp", "conn"]
)
def test_the_released_score_is_of_each_row_sorted_whole(arm, near, after):
    feats, _ = mixture(count=300, seed=1)
    s, budget = dense(feats), 40
    ordered = -np.sort(-s, axis=1)
    scores = near * ordered[:, :budget].sum(1) + after * ordered[:, budget : 2 * budget].sum(1)
    expected = np.sort(sets_of_anchors(s, budget)[scores.argmax()])
    assert np.array_equal(select(f"contrastive:arm={arm}", feats, budget), expected)


@pytest.mark.parametrize(("arm", "near", "after"), [("both", 1, -1), ("positive", 1, 0), ("negative", 0, -1)])
def test_the_total_is_summed_over_all_pairs(arm, near, after):
    feats, _ = mixture(count=200, seed=2)
    s, budget = dense(feats), 30
    totals = []
    for rows in sets_of_anchors(s, budget):
        inside = np.isin(np.arange(200), rows)
        totals.append(near * s[inside][:, inside].sum() + after * s[inside][:, ~inside].sum())
    chosen = select(f"contrastive:criterion=total,shortlist=200,arm={arm}", feats, budget)
    assert np.array_equal(chosen, np.sort(sets_of_anchors(s, budget)[int(np.argmax(totals))]))


def test_the_arms_differ():
    feats, _ = mixture(count=300, spread=0.3, seed=1)
    chosen = {select(f"contrastive:arm={arm}", feats, 40).tobytes() for arm in ("both", "positive", "negative")}
    assert len(chosen) == 3


def test_twice_the_poisons_must_be_there():
    feats, _ = mixture(count=100)
    assert len(select("contrastive", feats, 50)) == 50
    with pytest.raises(InputError, match=r"51 images to poison, but 50 are eligible .at most half of the images"):
        select("contrastive", feats, 51)
    assert len(select("contrastive:arm=positive", feats, 51)) == 51
