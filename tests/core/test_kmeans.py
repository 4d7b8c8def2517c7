"""Our k-means: against Lloyd's rounds written out, against scikit-learn, and on data with known clusters."""

import numpy as np
import pytest
import torch

from sslbd_cli.core import kmeans as module
from sslbd_cli.core import loader
from sslbd_cli.core.device import generator
from sslbd_cli.core.kmeans import kmeans, lloyd, seed_centers
from sslbd_cli.errors import InputError


def blobs(count=600, clusters=6, dim=8, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, clusters, count)
    feats = 3 * rng.normal(size=(clusters, dim))[labels] + spread * rng.normal(size=(count, dim))
    return torch.from_numpy(feats.astype(np.float32)), labels


def written_out(feats, centers, rounds):
    feats, centers = feats.double().numpy(), centers.double().numpy().copy()
    for _ in range(rounds):
        labels = ((feats[:, None] - centers[None]) ** 2).sum(2).argmin(1)
        centers = np.stack([feats[labels == k].mean(0) for k in range(len(centers))])
    squares = ((feats[:, None] - centers[None]) ** 2).sum(2)
    return centers, squares.argmin(1), squares.min(1).sum()


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_rounds_are_lloyds(monkeypatch, rounds, block):
    monkeypatch.setitem(loader.AT_ONCE, "center scores", (block, 1))
    feats, _ = blobs(spread=2)
    start = feats[:6]
    found = lloyd(feats, start, rounds, tolerance=0)
    centers, labels, inertia = written_out(feats, start, rounds)
    assert np.allclose(found.centers, centers, atol=1e-4) and np.array_equal(found.labels, labels)
    assert found.inertia == pytest.approx(inertia, rel=1e-5) and found.rounds == rounds
    assert torch.equal(start, feats[:6])


@pytest.mark.gpu
def test_a_gpu_clusters_as_the_cpu():
    feats, _ = blobs()
    here, there = (kmeans(feats.to(device), 6, generator(0)) for device in ("cpu", "cuda"))
    assert torch.equal(here.labels, there.labels.cpu()) and there.inertia == pytest.approx(here.inertia, rel=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_known_clusters_are_found(half):
    feats, labels = blobs()
    found = kmeans(feats, 6, generator(0), restarts=3, half=half)
    pairs = set(zip(labels.tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == 6
    assert found.sizes().tolist() == [int((found.labels == k).sum()) for k in range(6)]


@pytest.mark.parametrize("unit", [False, True])
def test_the_inertia_is_scikit_learns_or_less(unit):
    from sklearn.cluster import KMeans

    feats, _ = blobs(count=1500, clusters=40, spread=1)
    feats = torch.nn.functional.normalize(feats, dim=1) if unit else feats
    peer = np.median([KMeans(40, n_init=1, random_state=seed).fit(feats.numpy()).inertia_ for seed in range(3)])
    ours = np.median([kmeans(feats, 40, generator(seed)).inertia for seed in range(3)])
    assert ours <= 1.02 * peer


def test_bf16_ends_as_near_as_fp32():
    feats, _ = blobs(count=2000, clusters=30, spread=1.5)
    start = feats[:30]
    full, half = (lloyd(feats, start, half=half) for half in (False, True))
    assert half.inertia == pytest.approx(full.inertia, rel=0.01)
    assert torch.allclose(half.centers[0], feats[half.labels == 0].mean(0), atol=0.05)


def test_one_seed_is_one_result_and_restarts_only_help():
    feats, _ = blobs(spread=2, clusters=12)
    one, again = (kmeans(feats, 12, generator(3)) for _ in range(2))
    assert torch.equal(one.centers, again.centers) and torch.equal(one.labels, again.labels)
    assert kmeans(feats, 12, generator(3), restarts=6).inertia <= one.inertia
    assert not torch.equal(kmeans(feats, 12, generator(4)).centers, one.centers)


def test_a_center_without_rows_moves_to_the_farthest():
    feats = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1], [50, 50]])
    found = lloyd(feats, torch.tensor([[0.0, 0], [10, 0], [-900, -900]]))
    assert found.labels.tolist() == [0, 0, 1, 1, 2] and found.inertia == pytest.approx(1)


def test_fewer_distinct_rows_than_clusters_leave_clusters_empty():
    feats = torch.eye(2).repeat(5, 1)
    found = kmeans(feats, 4, generator(0))
    assert found.inertia == 0 and found.sizes().sum() == 10 and (found.sizes() > 0).sum() == 2
    assert found.centers.isfinite().all()


def test_far_rows_are_likelier_seeds():
    """Of one far row and many near ones, k-means++ takes the far one; uniform draws hardly ever would."""
    feats = torch.cat([torch.randn(500, 4, generator=generator(0)), torch.full((1, 4), 1000.0)])
    assert all((seed_centers(feats, 2, generator(seed)) == 1000).any() for seed in range(10))


def test_many_centers_are_seeded_from_a_sample_several_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "ONE_BY_ONE", 4)
    monkeypatch.setattr(module, "SAMPLE", 300)
    feats, labels = blobs(count=900, clusters=10)
    centers = seed_centers(feats, 13, generator(0))
    assert centers.shape == (13, 8)
    rows = [int((feats == center).all(1).nonzero()[0]) for center in centers]
    assert len(set(rows)) == 13 and len(set(labels[rows])) >= 9


@pytest.mark.parametrize("clusters", [0, -1, 601])
def test_as_many_clusters_as_there_may_be(clusters):
    with pytest.raises(InputError, match=f"{clusters} clusters of 600 rows: give 1 to 600"):
        kmeans(blobs()[0], clusters, generator(0))


def test_one_cluster_and_all_clusters():
    feats, _ = blobs(count=30)
    assert torch.allclose(kmeans(feats, 1, generator(0)).centers[0], feats.mean(0), atol=1e-5)
    assert kmeans(feats, 30, generator(0)).inertia == pytest.approx(0, abs=1e-6)
