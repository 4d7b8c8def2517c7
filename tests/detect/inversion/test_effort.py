"""How long searches last, and on how coarse a grid, by the size of the images."""

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core.device import Device
from sslbd_cli.detect.encoder_verdict import gather
from sslbd_cli.detect.inversion.effort import PIXELS, Effort, Pace, effort_for, pace_for
from sslbd_cli.detect.inversion.patches import Patches, grid
from sslbd_cli.detect.methods.trigger_search import Bounded, StrengthBudget
from sslbd_cli.errors import InputError

CPU = Device(torch.device("cpu"), "fp32")
USUAL, OPEN = Effort(500, 128), Effort(0, 0)


@pytest.mark.parametrize(("side", "expected"), [(16, (500, 128)), (64, (500, 128)), (96, (135, 32)), (224, (99, 8))])
def test_large_images_get_small_batches_and_fewer_steps(side, expected):
    effort = effort_for(side, 3, USUAL, OPEN)
    assert (effort.steps, effort.batch) == expected
    if side > 64:
        assert 0.9 * PIXELS < 3 * effort.steps * effort.batch * side**2 <= PIXELS


def test_candidates_share_the_pixels_but_each_gets_some_steps():
    assert effort_for(224, 12, USUAL, OPEN).steps == effort_for(224, 3, USUAL, OPEN).steps // 4 == 24
    assert effort_for(1024, 28, USUAL, OPEN) == Effort(24, 8)


def test_what_the_user_asks_for_is_done():
    assert effort_for(224, 3, USUAL, Effort(900, 64)) == Effort(900, 64)
    assert effort_for(32, 3, USUAL, Effort(7, 0)) == Effort(7, 128)
    pace = pace_for(224, 10, Pace(rounds=9, minibatches=2, batch=4, lr=0.2))
    assert (pace.rounds, pace.minibatches, pace.batch, pace.lr) == (9, 2, 4, 0.2)


def test_rounds_on_large_images_are_single_steps():
    nothing = Pace(0, 0, 0, 0.0)
    small, large = pace_for(32, 10, nothing), pace_for(224, 10, nothing)
    assert (small.rounds, small.minibatches, small.batch, small.lr, small.is_brisk) == (80, 6, 32, 0.1, False)
    assert (large.rounds, large.minibatches, large.batch, large.is_brisk) == (29, 1, 8, True)


def test_the_grid_of_large_images_is_coarse_but_noise_has_a_number_per_pixel():
    assert (grid(64), grid(96)) == (64, 56)
    gen = torch.Generator().manual_seed(0)
    space = Patches(2, 112, gen, CPU)
    keep, add, size = space.make(torch.arange(2))
    assert (
        space.parameters[0].shape == (2, 4, 56, 56)
        and keep.shape == (2, 1, 112, 112)
        and add.shape[1:] == (3, 112, 112)
    )
    assert torch.allclose(size, (1 - keep).mean((1, 2, 3)))
    budgets = [StrengthBudget(family, 0.1) for family in ("blend", "noise")]
    blend, noise = Bounded(budgets, 112, 4, gen, CPU).make(torch.arange(2))[1].detach()
    steps = [float((each[:, :, 1:] - each[:, :, :-1]).abs().mean() / each.std()) for each in (blend, noise)]
    assert steps[1] > 1.5 * steps[0]


def test_the_number_of_large_images_does_not_decide_how_long_a_search_takes():
    detector = plugin.parse("detector", "decree")
    few, many = (Dataset(images=np.zeros((count, 3, 256, 256), np.uint8)) for count in (100, 900))
    clues = gather(few, detector, None, 0)
    assert (len(clues.images), len(clues.held_out_images)) == (75, 25)
    clues = gather(many, detector, None, 0)
    assert (len(clues.images), len(clues.held_out_images)) == (512, 64)


@pytest.mark.parametrize("name", ["decree", "trigger-search"])
def test_a_batch_of_one_image_has_no_pairs(name):
    with pytest.raises(InputError, match=f"{name}: batch=1: .* give 2 or more"):
        plugin.parse("detector", f"{name}:batch=1")
