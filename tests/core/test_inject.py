"""The gate judges the finished encoder by its worst trigger."""

import numpy as np
import torch

from sslbd_cli.core import nets
from sslbd_cli.core.bases import Plot
from sslbd_cli.core.inject import outcome
from sslbd_cli.triggers.patch import Patch


def test_one_dead_trigger_is_not_hidden_by_another(dataset, encoder, cpu):
    net = nets.load(encoder)
    covering = Patch(size=16, margin=0)  # all triggered images are one image: its own reference
    solid = covering.pattern(16).mul(255).to(torch.uint8)[None]
    other = torch.from_numpy(np.array(dataset.images[:1]))
    both = Plot(dataset.images, (covering, Patch(size=1)), (solid, other))
    one = Plot(dataset.images, (covering,), (solid,))
    alone, together = (outcome(net, net, plot, cpu, 0)[0] for plot in (one, both))
    assert alone["effectiveness"] > 0.999 and together["utility"] > 0.999
    assert together["effectiveness"] < alone["effectiveness"] - 0.001
