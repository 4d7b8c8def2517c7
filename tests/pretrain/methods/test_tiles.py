"""Jigsaw tiles: permutations far apart, and tiles that are where they should be."""

import itertools

import numpy as np
import pytest
import torch

from sslbd_cli.pretrain.methods import jigsaw


@pytest.mark.parametrize(("count", "nearest"), [(2, 9), (9, 9), (100, 6)])
def test_permutations_lie_far_apart(count, nearest):
    chosen = jigsaw.permutations(count).tolist()
    assert len(chosen) == count and all(sorted(order) == list(range(9)) for order in chosen)
    apart = [sum(a != b for a, b in zip(one, other, strict=True)) for one, other in itertools.combinations(chosen, 2)]
    assert min(apart) == nearest
    # no cell can avoid meeting itself in a slot more evenly than this: the largest mean distance there is
    even = [count // 9 + (slot < count % 9) for slot in range(9)]
    together = 9 * sum(n * (n - 1) // 2 for n in even)
    assert sum(apart) >= 0.999 * (9 * len(apart) - together)


def test_smaller_sets_begin_larger_ones():
    assert torch.equal(jigsaw.permutations(7), jigsaw.permutations(40)[:7])


def test_tiles_are_cut_where_cells_and_shifts_say():
    images = torch.rand(2, 3, 32, 32)  # cells of 10 pixels, a margin of one
    cells, shifts = torch.tensor([[0, 5], [8, 3]]), torch.tensor([[[0, 0], [2, 1]], [[2, 2], [1, 0]]])
    cut = jigsaw.cut(images, cells, shifts, 8)
    corners = ((0, 1, 1), (0, 1 + 10 + 2, 1 + 20 + 1), (1, 1 + 20 + 2, 1 + 20 + 2), (1, 1 + 10 + 1, 1))
    for tile, (image, top, left) in zip(cut, corners, strict=True):
        assert torch.equal(tile, images[image, :, top : top + 8, left : left + 8])
    assert cut.shape == (4, 3, 8, 8)


def test_only_the_green_magenta_axis_goes():
    x = torch.rand(4, 3, 2, 2)
    x[3] = x[3, :1]  # grey
    done = jigsaw.drop_green_magenta(x, torch.tensor([True, False, True, True]))
    assert torch.allclose(2 * done[0, 1], done[0, 0] + done[0, 2], atol=1e-6)
    assert torch.allclose(done[0].sum(0), x[0].sum(0), atol=1e-6)  # the axis has no lightness
    assert torch.allclose(done[2, 0] - done[2, 2], x[2, 0] - x[2, 2], atol=1e-6)  # nor any of red-blue
    assert torch.equal(done[1], x[1]) and torch.allclose(done[3], x[3], atol=1e-6)


def test_orders_are_looked_up_and_kept():
    orders = jigsaw.Orders(12)
    assert np.array_equal(orders(torch.tensor([3, 0])), jigsaw.permutations(12)[[3, 0]])
    assert "cells" in orders.state_dict()
