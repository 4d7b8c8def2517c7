"""Triggers from picture files: their transparency, their depth of colour, and files that are none."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.data.decode import read_picture
from sslbd_cli.errors import InputError

SIDE = 8


@pytest.fixture
def sticker(tmp_path):
    """Write a red disc; outside it a green that alpha 0 hides. Return the path and where the disc is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = (y - 3.5) ** 2 + (x - 3.5) ** 2 < 10
    pixels = np.where(disc[..., None], [255, 0, 0, 255], [0, 255, 0, 0]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sticker.png")
    return tmp_path / "sticker.png", torch.from_numpy(disc)


def stamp(spec, grey=100, side=SIDE):
    images = torch.full((2, 3, side, side), grey, dtype=torch.uint8)
    return plugin.parse("trigger", spec)(images, generator(0)).images


@pytest.mark.parametrize("spec", ["image:file={},size=8,margin=0", "image:file={},size=8,where=random,test_low=0",
                                  "blend:file={},alpha=1"])  # fmt: skip
def test_transparent_pixels_show_the_image_below(sticker, spec):
    path, disc = sticker
    for image in stamp(spec.format(path)):
        assert image[:, ~disc].unique().tolist() == [100]
        assert image[:, disc].T.unique(dim=0).tolist() == [[255, 0, 0]]


def test_alpha_multiplies_opacity_and_hidden_colours_do_not_bleed(sticker, tmp_path):
    path, disc = sticker
    image = stamp(f"image:file={path},size=8,margin=0,opacity=0.5")[0]
    assert image[:, disc].T.unique(dim=0).tolist() == [[178, 50, 50]] and image[:, ~disc].unique().tolist() == [100]
    scaled = stamp(f"image:file={path},size=5,where=center", grey=0)[0]
    assert scaled[0].max() > 200 and scaled[1].max() == 0
    half = np.full((4, 4, 4), 128, np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    mixed = 100 * (1 - 128 / 255) + 128 * 128 / 255
    assert stamp(f"blend:file={tmp_path / 'half.png'},alpha=1")[0].unique().tolist() == [round(mixed)]


def test_a_picture_of_opaque_alpha_is_one_without(sticker, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([colours, np.full((6, 6), 255, np.uint8)])).save(tmp_path / "b.png")
    one, other = (stamp(f"image:file={tmp_path / name},size=5,opacity=0.3") for name in ("a.png", "b.png"))
    assert torch.equal(one, other)


def test_a_trigger_is_decoded_as_a_dataset_is(tmp_path):
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image = stamp(f"image:file={tmp_path / 'deep.png'},size=8,margin=0")[0].numpy()
    assert np.array_equal(image, read_picture(str(tmp_path / "deep.png"), 8)) and image.max() == 63000 >> 8
    for values in (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.int32)):
        Image.fromarray(values).save(tmp_path / "odd.tif")
        with pytest.raises(InputError, match=r"image: file=.*odd\.tif: not a readable picture: .* no defined range"):
            stamp(f"image:file={tmp_path / 'odd.tif'}")


def test_pipes_and_devices_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file"):
            plugin.parse("trigger", f"image:file={path}")
