"""RotNet: four turns of each image, told apart, in colours as they are."""

import torch

from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.pretrain.methods.rotnet import RotNet


class Corner(torch.nn.Module):
    """An encoder that reads the four corner pixels, clockwise from the top left, and keeps what it was shown."""

    def forward(self, x):
        self.seen = x
        return x[:, 0][:, [0, 0, -1, -1], [0, -1, -1, 0]]


def test_an_encoder_that_sees_the_turn_has_no_loss():
    bright = torch.zeros(5, 3, 8, 8)
    bright[:, :, 0, 0] = 1  # top left; a counter-clockwise turn puts it bottom left, then bottom right, then top right
    encoder = Corner()
    learner = RotNet().learner(encoder, 4, 5)
    with torch.no_grad():
        learner["head"].bias.zero_()
        learner["head"].weight.copy_(100 * torch.eye(4)[[0, 3, 2, 1]])
    assert RotNet().loss(learner, [bright]) < 1e-6
    assert encoder.seen.shape == (20, 3, 8, 8)
    assert RotNet().loss(learner, [bright.flip(3)]) > 10  # starting from another corner, every answer is wrong


def test_an_encoder_that_sees_nothing_has_the_loss_of_chance():
    learner = RotNet().learner(torch.nn.Flatten(), 12, 3)
    torch.nn.init.zeros_(learner["head"].weight)
    torch.nn.init.zeros_(learner["head"].bias)
    assert abs(float(RotNet().loss(learner, [torch.rand(3, 3, 2, 2)]).detach()) - 1.3862944) < 1e-5  # log 4


def test_the_view_keeps_its_colours_and_the_users_crop():
    (recipe,) = RotNet().recipes(Recipe(size=8, scale=(0.5, 0.6), blur=0.3))
    assert recipe.scale == (0.5, 0.6) and recipe.flip == 0.5 and recipe.blur == 0.3
    flat = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1).expand(16, 3, 8, 8)
    assert torch.allclose(augment(flat, recipe, torch.Generator().manual_seed(0)), flat, atol=1e-6)
