"""Who sees which view: recipes of the two views, and losses that know no order."""

import pytest
import torch
from torch import nn

from sslbd_cli import plugin
from sslbd_cli.core.augment import Recipe

BASE = Recipe(size=8, blur=0.5, solarize=0.2)
UNEVEN = ("byol", "barlow-twins", "vicreg", "dino")
EVEN = ("simclr", "moco-v2", "simsiam")


@pytest.mark.parametrize("name", UNEVEN)
def test_the_second_view_alone_is_solarized(name):
    first, second = plugin.parse("objective", name).recipes(BASE)
    assert first == Recipe(size=8, blur=0.5, solarize=0.0) and second == BASE


@pytest.mark.parametrize("name", UNEVEN)
def test_the_keys_say_how_the_views_differ(name):
    keys = f"{name}:blur_second=0.1,solarize_first=1"
    first, second = plugin.parse("objective", keys).recipes(Recipe(size=8, blur=1.0, solarize=0.1))
    assert (first.blur, second.blur) == (1.0, 0.1) and (first.solarize, second.solarize) == (0.1, 0.1)


@pytest.mark.parametrize("name", EVEN)
def test_two_views_of_one_kind(name):
    assert plugin.parse("objective", name).recipes(BASE) == (BASE, BASE)


@pytest.mark.parametrize("name", [*UNEVEN, "simclr", "simsiam", "moco-v2:symmetric=yes,queue=32"])
def test_symmetric_losses_do_not_change_when_the_views_change_places(name):
    torch.manual_seed(0)
    objective = plugin.parse("objective", name)
    learner = objective.learner(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), 8, 8).eval()
    for queue in learner.get_submodule("queues") if "queues" in learner else ():
        queue.rows.copy_(learner["queues"][0].rows)
    first, second = torch.rand(2, 8, 3, 2, 2)
    ahead, back = objective.loss(learner, [first, second]), objective.loss(learner, [second, first])
    assert float(ahead.detach()) == pytest.approx(float(back.detach()), rel=1e-5)


@pytest.mark.parametrize("name", ["simsiam", "barlow-twins", "vicreg"])
def test_projectors_have_as_many_layers_as_asked_for(name):
    for layers in (2, 3):
        objective = plugin.parse("objective", f"{name}:layers={layers},hidden=6,out=5")
        projector = objective.learner(nn.Identity(), 8, 8)["projector"]
        shapes = [tuple(layer.weight.shape) for layer in projector if isinstance(layer, nn.Linear)]
        assert shapes == [(6, 8), *[(6, 6)] * (layers - 2), (5, 6)]


@pytest.mark.parametrize("name", [*UNEVEN, *EVEN, "msf"])
def test_the_loss_is_computed_in_full_precision_under_autocast(name):
    torch.manual_seed(0)
    objective = plugin.parse("objective", name + (":queue=32" if name in ("moco-v2", "msf") else ""))
    learner = objective.learner(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), 8, 8).train()
    views = list(torch.rand(2, 8, 3, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(learner, views)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
