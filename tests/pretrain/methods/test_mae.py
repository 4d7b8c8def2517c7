"""MAE: the encoder sees visible patches alone, and as the transformer itself would; others are refused."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.core.nets import new
from sslbd_cli.errors import InputError
from sslbd_cli.pretrain.methods.mae import MAE, encode_visible

VITS = ("vit:width=12,depth=2,pool=token", "vit:width=12,depth=1,pool=mean", "timm:model=test_vit")


def encoder_of(arch, size=32):
    return new(plugin.parse("arch", arch), size, (0.5,) * 3, (0.25,) * 3, generator(0, "weights"))


@pytest.fixture(params=VITS)
def net(request):
    return encoder_of(request.param).encoder.eval()


def test_with_every_patch_visible_it_is_the_transformer(net):
    x = torch.randn(2, 3, 32, 32)
    visible = torch.arange(net.patch_embed.num_patches).repeat(2, 1)
    assert torch.allclose(encode_visible(net, x, visible), net.forward_features(x), atol=1e-5)


def test_hidden_patches_are_not_seen(net):
    x = torch.randn(2, 3, 32, 32)
    side = net.patch_embed.patch_size[0]
    visible = torch.tensor([[1], [0]])
    other = torch.randn_like(x)
    other[0, :, :side, side : 2 * side] = x[0, :, :side, side : 2 * side]
    other[1, :, :side, :side] = x[1, :, :side, :side]
    assert torch.allclose(encode_visible(net, x, visible), encode_visible(net, other, visible), atol=1e-6)
    assert not torch.allclose(encode_visible(net, x, visible), encode_visible(net, x, 1 - visible), atol=1e-3)


@pytest.mark.parametrize("arch", VITS)
def test_every_weight_of_the_transformer_is_trained(arch):
    encoder, objective = encoder_of(arch), MAE(mask=0.5, depth=1, width=8, heads=2)
    objective.loss(objective.learner(encoder, encoder.dim(), 4), [torch.rand(4, 3, 32, 32)]).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in encoder.parameters())


def test_a_flat_guess_has_the_loss_of_chance():
    encoder, objective = encoder_of(VITS[0]), MAE()
    learner = objective.learner(encoder, 12, 8)
    torch.nn.init.zeros_(learner["decoder"].pixels.weight)
    torch.nn.init.zeros_(learner["decoder"].pixels.bias)
    loss = float(objective.loss(learner, [torch.rand(8, 3, 32, 32)]).detach())
    assert loss == pytest.approx(47 / 48, abs=1e-3)  # a unit deviation, counted over 48 pixels less one


def test_masks_are_drawn_anew_and_repeat_with_torchs_seed():
    encoder, objective, view = encoder_of(VITS[0]), MAE(), [torch.rand(8, 3, 32, 32)]
    learner = objective.learner(encoder, 12, 8)
    torch.manual_seed(0)
    first, second = (float(objective.loss(learner, view).detach()) for _ in range(2))
    torch.manual_seed(0)
    assert first == float(objective.loss(learner, view).detach()) != second


def test_the_view_is_a_crop_and_a_flip():
    (recipe,) = MAE().recipes(Recipe(size=8, scale=(0.5, 0.6)))
    assert (recipe.scale, recipe.flip, recipe.jitter, recipe.gray) == ((0.5, 0.6), 0.5, 0, 0)


@pytest.mark.parametrize(
    ("keys", "arch", "problem"),
    [
        ({}, "tiny:width=4", "needs a vision transformer .*, not tiny:width=4; give --arch vit"),
        ({}, "timm:model=resnet10t", "needs a vision transformer"),
        ({"mask": 0.9}, "vit:width=12,depth=1,patch=16", "mask=0.9 hides all of the 4 patches"),
        ({"width": 10}, "vit:width=12,depth=1", "heads=4 does not divide width=10"),
    ],
)
def test_what_cannot_be_masked_is_refused(keys, arch, problem):
    encoder = encoder_of(arch)
    with pytest.raises(InputError, match=problem):
        MAE(**keys).learner(encoder, encoder.dim(), 4)
