"""Jigsaw: tiles as the keys say, shortcuts closed, and sizes that do not fit refused."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import new
from sslbd_cli.errors import InputError
from sslbd_cli.pretrain.methods.jigsaw import Jigsaw


class Look(torch.nn.Module):
    """A network that keeps what it was shown and answers with the mean colour."""

    def forward(self, x):
        self.seen = x
        return x.mean((2, 3))


def learner_of(objective, arch="tiny:width=4", size=32, batch=4):
    encoder = new(plugin.parse("arch", arch), size, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))
    return objective.learner(encoder, encoder.dim(), batch)


def seen_by(objective, view):
    learner = learner_of(objective, size=view.shape[-1])
    learner["encoder"].encoder = look = Look()
    learner["head"] = torch.nn.Linear(27, objective.permutations)
    torch.manual_seed(0)
    objective.loss(learner, [view])
    return look.seen.view(len(view), 9, *look.seen.shape[1:])


@pytest.mark.parametrize(
    ("keys", "side"), [({}, 8), ({"tile": 10}, 10), ({"feed": 16}, 16), ({"feed": 4}, 4), ({"tile": 6, "feed": 6}, 6)]
)
def test_tiles_have_the_side_the_keys_say(keys, side):
    assert seen_by(Jigsaw(**keys), torch.rand(4, 3, 32, 32)).shape == (4, 9, 3, side, side)


def test_the_papers_tiles_of_255_pixels_have_64():
    assert Jigsaw().side(255) == 64


def test_all_nine_cells_are_shown_in_many_orders():
    cells = torch.arange(9.0).view(3, 3).repeat_interleave(10, 0).repeat_interleave(10, 1) / 9
    view = torch.nn.functional.pad(cells, (1, 1, 1, 1)).expand(16, 3, 32, 32)
    shown = seen_by(Jigsaw(projection=0), view)[:, :, 0] * 0.25 + 0.5
    assert torch.allclose(shown, shown[:, :, :1, :1].expand_as(shown), atol=1e-5)  # no tile crosses its cell's edge
    orders = (shown[:, :, 0, 0] * 9).round().int().tolist()
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) > 10


def test_tiles_of_one_cell_lie_at_random():
    ramp = torch.arange(32.0).expand(64, 3, 32, 32) / 32  # a pixel's colour is its column
    first = ((seen_by(Jigsaw(projection=0), ramp)[:, :, 0, 0, 0] * 0.25 + 0.5) * 32).round().int() - 1
    assert {column % 10 for column in first.flatten().tolist()} == {0, 1, 2}


def test_normalised_tiles_do_not_tell_their_brightness():
    view = torch.rand(4, 3, 32, 32) * torch.linspace(0.1, 1, 32)
    by_image, by_tile = (seen_by(Jigsaw(norm=norm), view) for norm in ("image", "tile"))
    assert by_image.mean((3, 4)).std() > 0.3
    assert by_tile.mean((3, 4)).abs().max() < 1e-4
    assert (by_tile.std((3, 4), correction=0) - 1).abs().max() < 0.1
    flat = seen_by(Jigsaw(norm="tile"), torch.full((2, 3, 32, 32), 0.7))
    assert flat.abs().max() < 1e-4


def test_grey_is_in_the_recipe_and_the_users_crop_stays():
    (recipe,) = Jigsaw(gray=0.25).recipes(Recipe(size=8, scale=(0.5, 0.6)))
    assert (recipe.gray, recipe.jitter, recipe.scale) == (0.25, 0, (0.5, 0.6))


@pytest.mark.parametrize(
    ("spec", "arch", "size", "problem"),
    [
        ("jigsaw:tile=11", "tiny:width=4", 32, "tile=11 does not fit the 10-pixel cells of 32 pixels"),
        ("jigsaw", "vit:width=12,depth=1", 32, "does not take 8-pixel tiles; give feed=32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, arch, size, problem):
    with pytest.raises(InputError, match=problem):
        learner_of(plugin.parse("objective", spec), arch, size)


def test_a_transformer_sees_enlarged_tiles():
    objective = Jigsaw(feed=16, permutations=5)
    learner = learner_of(objective, "vit:width=12,depth=1", 16)
    assert torch.isfinite(objective.loss(learner, [torch.rand(4, 3, 16, 16)]))


@pytest.mark.parametrize(
    ("arch", "side", "dtype"),
    [
        ("tiny:width=4", 5, torch.float32),  # 5, 2 and 1 pixels, before a stride of 2
        ("tiny:width=4", 6, torch.bfloat16),  # 6, 3 and 2 pixels
        ("resnet18", 4, torch.float32),
        ("resnet18", 5, torch.bfloat16),
    ],
)
def test_tiles_that_become_smaller_than_a_stride_are_embedded_in_fp32(arch, side, dtype):
    """On CPUs, torch does not write the bf16 gradients of weights that meet no pixel."""
    objective, maps = Jigsaw(tile=side, permutations=2), []
    learner = learner_of(objective, arch, batch=2)
    convs = [module for module in learner["encoder"].modules() if isinstance(module, torch.nn.Conv2d)]
    convs[-1].register_forward_hook(lambda module, inputs, out: maps.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        objective.loss(learner, [torch.rand(2, 3, 32, 32)]).backward()
    assert maps[0].dtype == dtype
