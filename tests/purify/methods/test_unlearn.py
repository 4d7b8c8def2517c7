"""Unlearning: the trigger is moved and weakened as said, and what it did is undone where it is the right one."""

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import mean_cosine
from sslbd_cli.errors import InputError
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.methods.unlearn import jittered
from sslbd_cli.triggers._contract import triggered_images
from sslbd_cli.triggers._found import Witness
from wired import TRIGGER, make_scenes, make_wired


def square(level: float = 1.0, side: int = 16) -> Witness:
    keep, add = torch.ones(1, side, side), torch.zeros(3, side, side)
    keep[:, 9:14, 9:14], add[:, 9:14, 9:14] = 0, level
    return Witness(keep, add)


def test_without_jitter_it_is_the_witness_itself():
    pixels, gen = torch.rand(3, 3, 16, 16), torch.Generator().manual_seed(0)
    soft = Witness(torch.rand(3, 16, 16), torch.rand(3, 16, 16) * 0.6)
    for witness in (square(), soft):
        assert torch.allclose(jittered(witness, pixels, 0, 1.0, gen), witness.stamp(pixels), atol=1e-6)


def test_place_and_strength_vary_within_bounds():
    pixels, gen = torch.full((200, 3, 16, 16), 0.5), torch.Generator().manual_seed(0)
    stamped = jittered(square(), pixels, 2, 0.4, gen)
    corners, powers = set(), []
    for image in stamped.numpy():
        rows, cols = np.nonzero(np.abs(image[0] - 0.5) > 1e-6)
        corners.add((rows.min(), cols.min()))
        assert len(rows) == 25 and np.ptp(rows) == np.ptp(cols) == 4
        powers.append(float(image[0, rows[0], cols[0]] - 0.5) / 0.5)  # 0.5 + power * (1 - 0.5)
    assert corners == {(y, x) for y in range(7, 12) for x in range(7, 12)}
    assert 0.4 <= min(powers) < 0.5 and 0.9 < max(powers) <= 1


def test_the_right_trigger_is_undone_and_a_wrong_one_is_not(cpu):
    data, fresh, net = make_scenes(120), make_scenes(60, seed=1), make_wired()
    stamped = triggered_images(fresh, plugin.parse("trigger", TRIGGER), 0)
    method = plugin.parse("purifier", "unlearn:epochs=8,batch=20,lr=0.003,strength=0.9")

    def restored(witness: Witness) -> tuple[float, float]:
        purified = method.clean(net, Supplies(data.images, witness), Session(cpu))
        clean = embed(net, fresh.images, Session(cpu))
        return tuple(mean_cosine(clean, embed(purified, images, Session(cpu))) for images in (stamped, fresh.images))

    right, wrong = restored(square()), restored(square(0.0))
    assert right[0] > wrong[0] + 0.2
    assert min(right[1], wrong[1]) > 0.9


@pytest.mark.parametrize("witness", [None, square(side=20)])
def test_a_trigger_that_does_not_fit_is_refused(witness, cpu):
    with pytest.raises(InputError, match="16x16"):
        plugin.parse("purifier", "unlearn").clean(make_wired(), Supplies(make_scenes(40).images, witness), Session(cpu))
