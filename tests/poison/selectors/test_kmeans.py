"""Cluster selection on clusters of known sizes: the smallest with enough members, and which of them."""

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import SelectorPool

SIZES = (200, 90, 60, 20)


def clusters(seed=0):
    """Directions around far means, SIZES of them, shuffled; and which is of which."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(4), SIZES))
    feats = 4 * np.eye(4, 16)[labels] + 0.3 * rng.normal(size=(len(labels), 16))
    return torch.from_numpy(feats.astype(np.float32)), labels


def select(spec, budget, classes=4, seed=0):
    feats, labels = clusters()
    rows = plugin.parse("select", spec)(
        SelectorPool(count=len(feats), classes=classes, feats=feats), budget, generator(seed)
    )
    return rows, labels


@pytest.mark.parametrize("fit", ["lloyd", "minibatch"])
@pytest.mark.parametrize(("budget", "cluster"), [(10, 3), (20, 3), (21, 2), (60, 2), (61, 1), (91, 0), (200, 0)])
def test_the_smallest_cluster_with_enough_members(fit, budget, cluster):
    rows, labels = select(f"kmeans:fit={fit}", budget)
    assert set(labels[rows]) == {cluster}


def test_no_cluster_is_large_enough():
    with pytest.raises(InputError, match=r"none of 4 clusters has the 201 images.*the largest has 200; lower the rate"):
        select("kmeans", 201)


def test_other_clusters_are_controls():
    rows, labels = select("kmeans:choose=largest", 10)
    assert set(labels[rows]) == {0}
    found = {int(labels[select("kmeans:choose=random", 30, seed=seed)[0]][0]) for seed in range(12)}
    assert found == {0, 1, 2}  # the fourth is too small


def test_the_first_members_are_those_of_the_dataset_order():
    rows, labels = select("kmeans:members=first", 7)
    assert np.array_equal(rows, np.flatnonzero(labels == 3)[:7])


def test_the_nearest_members_are_about_the_middle_of_unit_features():
    rows, labels = select("kmeans:members=nearest", 7)
    z = clusters()[0].double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    inside = np.flatnonzero(labels == 3)
    far = ((z[inside] - z[inside].mean(0)) ** 2).sum(1)
    assert np.array_equal(rows, np.sort(inside[np.argsort(far)[:7]]))


def test_random_members_vary_with_the_seed():
    assert not np.array_equal(select("kmeans", 7, seed=0)[0], select("kmeans", 7, seed=1)[0])


def test_the_number_of_clusters_is_the_classes_or_is_asked_for():
    with pytest.raises(InputError, match="names no classes to count; give kmeans:clusters=K"):
        select("kmeans", 5, classes=None)
    rows, labels = select("kmeans:clusters=4", 5, classes=None)
    assert set(labels[rows]) == {3}
    with pytest.raises(InputError, match="371 clusters of 370 images; give a smaller clusters="):
        select("kmeans:clusters=371", 5)
