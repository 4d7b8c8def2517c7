import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from sslbd_cli.core import loader
from sslbd_cli.core.device import generator
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect import outliers
from sslbd_cli.errors import InputError


def features(count=300, width=8, seed=0):
    return unit(torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width))))


@pytest.mark.parametrize(("count", "k"), [(40, 3), (300, 16), (1500, 5)])  # the last one looks at chunks
def test_neighbours_are_those_of_scikit_learn(count, k):
    z = features(count)
    apart, near = outliers.neighbours(z, k)
    expected, rows = NearestNeighbors(n_neighbors=k).fit(z.numpy()).kneighbors()
    assert np.allclose(apart, expected, atol=1e-5)
    assert (near.numpy() == rows).mean() > 0.999
    assert not (near == torch.arange(count)[:, None]).any()


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch):
    z = features(1500)
    whole = outliers.neighbours(z, 5)
    monkeypatch.setitem(loader.AT_ONCE, "neighbour similarities", (1500 * 7, 1))
    parts = outliers.neighbours(z, 5)
    assert torch.allclose(whole[0], parts[0], atol=1e-6) and (whole[1] == parts[1]).float().mean() > 0.999


def test_copies_are_at_no_distance():
    z = features(60).repeat(3, 1)
    apart, near = outliers.neighbours(z, 4)
    assert apart[:, :2].max() == 0 and apart[:, 2].min() > 0
    assert (near[:, :2] % 60 == torch.arange(180)[:, None] % 60).all()


def test_robust_deviations_are_of_median_and_mad():
    values = np.random.default_rng(0).normal(3, 2, 501)
    values[:20] += 100
    z_values = outliers.robust_z(torch.from_numpy(values)).numpy()
    assert np.allclose(z_values, (values - np.median(values)) / median_abs_deviation(values, scale="normal"), rtol=1e-4)
    assert np.abs(z_values[20:].std() - 1) < 0.15


def test_mostly_equal_values_have_finite_deviations():
    values = torch.tensor([0.0] * 30 + [1.0] * 2)
    z_values = outliers.robust_z(values)
    assert z_values[:30].eq(0).all() and (z_values[30:] > 5).all() and z_values.isfinite().all()
    assert outliers.robust_z(torch.ones(7)).eq(0).all()
    assert outliers.robust_z(torch.ones(1)).eq(0).all()
    rounded = torch.ones(25).index_fill(0, torch.tensor([24]), 1 + 1.2e-7)
    assert outliers.robust_z(rounded).eq(0).all()


@pytest.mark.parametrize("second", [1, 20, 90])
def test_the_silhouette_is_scikit_learns(second):
    x = features(120) + 2 * (torch.arange(120) < second)[:, None]
    parts = torch.arange(120) < second
    expected = silhouette_score(x.numpy(), parts.numpy())
    assert outliers.silhouette(x, parts, generator(0, "s")) == pytest.approx(expected, abs=1e-5)


def test_the_silhouette_of_many_rows_is_estimated():
    x = features(3000) + (torch.arange(3000) < 700)[:, None]
    parts = torch.arange(3000) < 700
    value = outliers.silhouette(x, parts, generator(0, "s"))
    assert value == pytest.approx(silhouette_score(x.numpy(), parts.numpy()), abs=0.01)
    assert outliers.silhouette(x, parts & False, generator(0, "s")) == 0


def test_pseudo_labels_part_all_rows():
    z = features(100)
    groups = outliers.pseudo_labels(z, 7, 0, "test")
    assert len(groups) == 7 and torch.equal(torch.cat(groups).sort().values, torch.arange(100))
    assert all(torch.equal(rows, rows.sort().values) for rows in groups)
    assert len(outliers.pseudo_labels(z, 1, 0, "test")[0]) == 100
    with pytest.raises(InputError, match="test: 101 clusters of 100 images; give clusters= of at most 100"):
        outliers.pseudo_labels(z, 101, 0, "test")
