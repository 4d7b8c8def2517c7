"""The gate judges the finished encoder by its worst trigger."""

import numpy as np
import torch

from sslbd_cli.attacks.badencoder import outcome
from sslbd_cli.core import nets
from sslbd_cli.core.bases import Plot
from sslbd_cli.triggers.patch import Patch


def test_one_dead_trigger_is_not_hidden_by_another(dataset, encoder, cpu):
    net = nets.load(encoder)
    covering = Patch(size=16, margin=0)  # all triggered images are one image: its own reference
    solid = covering.pattern(16).mul(255).to(torch.uint8)[None]
    other = torch.from_numpy(np.array(dataset.images[:1]))
    both = Plot(dataset.images, (covering, Patch(size=1)), (solid, other))
    one = Plot(dataset.images, (covering,), (solid,))
    assert outcome(net, net, one, cpu, 0)["effectiveness"] > 0.999
    assert outcome(net, net, both, cpu, 0)["effectiveness"] < outcome(net, net, one, cpu, 0)["effectiveness"] - 0.001
    assert outcome(net, net, both, cpu, 0)["utility"] > 0.999
