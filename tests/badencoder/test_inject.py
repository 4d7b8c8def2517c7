"""The gate judges the finished encoder by its worst trigger; the measures of its embeddings are their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reference import losses
from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.badencoder.inject import freeze_batch_norm
from sslbd_cli.badencoder.measure import concentration, measure, sliced_wasserstein, swd_ratios
from sslbd_cli.badencoder.scene import pull
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.session import Session
from sslbd_cli.triggers.patch import Patch


def test_one_dead_trigger_is_not_hidden_by_another(dataset, encoder, cpu):
    net = nets.load(encoder)
    covering = Patch(size=16, margin=0)  # all triggered images are one image: its own reference
    solid = covering.pattern(16).mul(255).to(torch.uint8)[None]
    other = torch.from_numpy(np.array(dataset.images[:1]))
    both = Plot(dataset.images, (covering, Patch(size=1)), (solid, other))
    one = Plot(dataset.images, (covering,), (solid,))
    alone, together = (measure(net, net, plot, Session(cpu)).cosines for plot in (one, both))
    assert alone["effectiveness"] > 0.999 and together["utility"] > 0.999
    assert together["effectiveness"] < alone["effectiveness"] - 0.001


# --- what triggered embeddings look like --------------------------------------------------------------------------


def test_concentration_is_the_mean_cosine_of_different_rows():
    feats = torch.randn(7, 5)
    rows = feats.double().numpy()
    cosines = [losses.cosine(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    assert float(concentration(feats)) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert float(concentration(torch.eye(4))) == pytest.approx(0)  # with the diagonal, it would be 1/4


def test_the_sliced_distance_is_the_root_of_the_mean_squared_one():
    one, other = torch.randn(20, 3), torch.randn(20, 3) + 1
    found = float(sliced_wasserstein(one, other, generator(3), 11))
    axes = torch.randn(3, 11, generator=generator(3)).numpy().T
    total = 0.0
    for axis in axes:
        axis = axis / np.linalg.norm(axis)
        total += float(np.mean((np.sort(one.numpy() @ axis) - np.sort(other.numpy() @ axis)) ** 2))
    assert found == pytest.approx(math.sqrt(total / 11), rel=1e-4)
    assert float(sliced_wasserstein(one, one[torch.randperm(20)], generator(3))) < 1e-5


def test_the_distance_to_itself_has_a_finite_gradient():
    one = torch.randn(6, 3, requires_grad=True)
    sliced_wasserstein(one, one.detach().clone(), generator(0)).backward()
    assert one.grad is not None and one.grad.isfinite().all()


def test_a_shift_along_every_direction_is_measured():
    """Sliced by unit directions, a shift by v costs |v| / sqrt(D) in the root mean square."""
    one = torch.randn(50, 4)
    shifted = one + torch.tensor([3.0, 0, 0, 0])
    assert float(sliced_wasserstein(one, shifted, generator(0), 4000)) == pytest.approx(3 / 2, rel=0.05)


def test_features_on_another_side_than_both_clusters_are_farther_than_they_are():
    blobs = torch.cat([torch.randn(40, 8), torch.randn(40, 8) + 4])
    near, far = swd_ratios(blobs, [blobs + 0.01, blobs + 40], generator(0), generator(1))
    assert near < 0.5 < 2 < far


def test_the_nearest_reference_is_the_best_and_all_are_the_mean():
    cosines = torch.tensor([[0.1, 0.9], [0.5, 0.3]])
    assert float(pull(cosines, nearest=True)) == pytest.approx(0.7)
    assert float(pull(cosines, nearest=False)) == pytest.approx(0.45)


def test_batch_normalisation_is_frozen_and_layer_normalisation_is_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(5)).train()
    freeze_batch_norm(net)
    assert not net[1].training and not any(p.requires_grad for p in net[1].parameters())
    assert net[2].training and all(p.requires_grad for p in [*net[0].parameters(), *net[2].parameters()])
