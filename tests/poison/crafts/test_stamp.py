"""Stamping makes one poison of each image."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Material

PATCH = plugin.parse("trigger", "patch:size=4,where=random")


def test_it_is_the_trigger_on_each_image_in_its_training_place():
    images = torch.randint(0, 256, (7, 3, 16, 16), generator=generator(1)).to(torch.uint8)
    crafted = plugin.parse("craft", "stamp").craft(Material(images), PATCH, 7, generator(0))
    wanted = PATCH(images, generator(0), "train")
    assert torch.equal(crafted.images, wanted.images) and torch.equal(crafted.boxes, wanted.boxes)
    assert crafted.reference.tolist() == list(range(7))


def test_another_number_of_poisons_than_of_images_is_refused():
    with pytest.raises(InputError, match="one poison of each chosen image, not 3 of 7"):
        plugin.parse("craft", "stamp").craft(Material(torch.zeros(7, 3, 8, 8)), PATCH, 3, generator(0))
