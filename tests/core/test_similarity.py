"""The blocked search gives what the whole matrix would, without ever holding it."""

import numpy as np
import pytest
import torch

from sslbd_cli.core import loader, similarity
from sslbd_cli.core.similarity import anchor_scores, nearest, unit, within_and_across
from sslbd_cli.errors import InputError

FEATS = torch.from_numpy(np.random.default_rng(0).normal(size=(230, 12)).astype(np.float32))


def dense(feats):
    z = feats.double().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T


def expected(s, near, top, after):
    ordered = -np.sort(-s, axis=1)
    return top * ordered[:, :near].sum(1) + after * ordered[:, near : 2 * near].sum(1)


@pytest.mark.parametrize("rows", [1, 7, 64, 230, 1000])
@pytest.mark.parametrize(("near", "top", "after"), [(1, 1, -1), (40, 1, -1), (115, 0, -1), (230, 1, 0), (40, 2, 0.5)])
def test_blocks_of_any_size_are_the_dense_result(monkeypatch, rows, near, top, after):
    monkeypatch.setitem(loader.AT_ONCE, "anchor similarities", (rows * 230, 1))
    scores = anchor_scores(unit(FEATS), near, top, after)
    assert scores.dtype == torch.float64
    assert np.allclose(scores.numpy(), expected(dense(FEATS), near, top, after), atol=2e-4)


def test_several_threads_are_one():
    before = torch.get_num_threads()
    one = anchor_scores(unit(FEATS), 40, 1, -1)
    try:
        torch.set_num_threads(3)
        assert torch.allclose(anchor_scores(unit(FEATS), 40, 1, -1), one, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_the_way_of_accelerators_is_that_of_the_cpu(monkeypatch):
    z, whole = unit(FEATS), []
    for near, after in ((40, -1), (230, 0)):
        whole.append(anchor_scores(z, near, 1, after))
    monkeypatch.setattr(similarity, "_bands_cpu", similarity._bands_device)
    for (near, after), cpu in zip(((40, -1), (230, 0)), whole, strict=True):
        assert torch.allclose(anchor_scores(z, near, 1, after), cpu, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds():
    z = unit(FEATS)
    assert torch.allclose(anchor_scores(z.cuda(), 40, 1, -1), anchor_scores(z, 40, 1, -1), atol=1e-4)
    assert torch.equal(nearest(z.cuda(), 3, 20), nearest(z, 3, 20))


def test_the_matrix_is_never_held(monkeypatch):
    """No product has more entries than a block."""
    sizes, product = [], torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: sizes.append(out.numel()) or product(a, b, out=out))
    monkeypatch.setitem(loader.AT_ONCE, "anchor similarities", (10 * 230, 1))
    anchor_scores(unit(FEATS), 40, 1, -1)
    assert len(sizes) == 23 and max(sizes) <= 10 * 230


def test_neighbours_come_by_similarity_and_ties_by_row():
    s = dense(FEATS)
    assert nearest(unit(FEATS), 3, 50).tolist() == np.argsort(-s[3], kind="stable")[:50].tolist()
    twins = torch.eye(3)[[0, 1, 0, 2, 0]]
    assert nearest(twins, 2, 3).tolist() == [0, 2, 4]


def test_sums_within_and_across_are_those_over_all_pairs():
    z, s, rows = unit(FEATS), dense(FEATS), torch.tensor([5, 9, 200, 17])
    inside = np.isin(np.arange(230), rows)
    within, across = within_and_across(z, rows, z.sum(0))
    assert within == pytest.approx(s[inside][:, inside].sum(), abs=1e-4)
    assert across == pytest.approx(s[inside][:, ~inside].sum(), abs=1e-4)


@pytest.mark.parametrize(("near", "after"), [(116, -1), (231, 0), (0, -1)])
def test_too_few_rows_for_the_neighbours(near, after):
    with pytest.raises(InputError, match=r"neighbours .*of 230 rows"):
        anchor_scores(unit(FEATS), near, 1, after)


def test_rows_of_zeros_are_like_nothing():
    z = unit(torch.cat([torch.zeros(2, 3), torch.eye(3)]))
    assert z.isfinite().all()
    assert anchor_scores(z, 1, 1, 0).tolist() == [0, 0, 1, 1, 1]


def test_cka_and_cosine_are_the_formulas():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 6)) + 2, rng.normal(size=(50, 4))
    y[:, 0] += 3 * x[:, 1]
    k, m = (z @ z.T for z in (x, y))
    h = np.eye(50) - 1 / 50
    expected = np.trace(k @ h @ m @ h) / np.sqrt(np.trace(k @ h @ k @ h) * np.trace(m @ h @ m @ h))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert 0.05 < expected < 0.95 and similarity.linear_cka(a, b) == pytest.approx(expected, rel=1e-9)
    turned = torch.linalg.qr(torch.from_numpy(rng.normal(size=(6, 6))))[0]
    assert similarity.linear_cka(a, 3 * a @ turned + 7) == pytest.approx(1)
    assert similarity.linear_cka(a, torch.ones(50, 2)) == 0
    cosines = [x[i] @ x[i - 1] / np.linalg.norm(x[i]) / np.linalg.norm(x[i - 1]) for i in range(50)]
    assert similarity.mean_cosine(a, a.roll(1, 0)) == pytest.approx(np.mean(cosines), rel=1e-5)


def test_of_no_rows_there_are_no_neighbours():
    similarities, rows = similarity.nearest_rows(torch.zeros(0, 4), torch.eye(4), 2, step=3)
    assert similarities.shape == rows.shape == (0, 2)
