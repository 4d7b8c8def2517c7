"""Patches: the papers' patterns pixel by pixel, and SSL-Backdoor's ranges of random places."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError


def stamped(spec: str, height: int, width: int, value: int = 100, phase: str = "test", count: int = 1):
    images = torch.full((count, 3, height, width), value, dtype=torch.uint8)
    return plugin.parse("trigger", f"patch:{spec}")(images, generator(0), phase)


def test_the_checkerboard_of_no_label_backdoors_is_where_they_put_it():
    image = stamped("size=3,where=center,fill=checkerboard", 32, 32).images[0]
    wanted = torch.full((32, 32), 100)
    wanted[14:17, 14:17] = torch.tensor([[0, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert all(torch.equal(channel, wanted.to(torch.uint8)) for channel in image)


def test_a_larger_checkerboard_has_larger_cells():
    pattern = plugin.parse("trigger", "patch:fill=checkerboard").pattern(9)
    wanted = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(pattern, wanted.expand(3, 9, 9))


def test_chess_alternates():
    pattern = plugin.parse("trigger", "patch:fill=chess,blocks=4").pattern(8)
    for y in range(8):
        for x in range(8):
            assert (pattern[:, y, x] == (y // 2 + x // 2) % 2).all()


def test_opacity_mixes_patch_and_image():
    found = stamped("size=4,where=tl,margin=0,fill=c80000,opacity=0.25", 8, 8)
    assert found.images[0, :, 0, 0].tolist() == [125, 75, 75]  # 3/4 of 100 + 1/4 of 200, 0, 0
    assert (found.images[0, :, 4:] == 100).all()


@pytest.mark.parametrize(
    ("size", "height", "width", "phase", "columns", "rows"),
    [
        (8, 32, 32, "train", (8, 16), (8, 16)),
        (8, 32, 32, "test", (3, 20), (3, 20)),
        (50, 224, 224, "test", (22, 151), (22, 151)),  # the values in generate_poison.py's documentation
        (50, 375, 500, "train", (125, 325), (93, 231)),
        (20, 32, 32, "train", (8, 8), (8, 8)),  # 24 - 20 is below 8: raised to it
        (24, 32, 32, "train", (8, 8), (8, 8)),
    ],
)
def test_random_places_are_those_of_ssl_backdoor(size, height, width, phase, columns, rows):
    trigger = plugin.parse("trigger", f"patch:size={size},where=random")
    x, y, *sides = trigger.place(20000, height, width, generator(0), phase).T
    assert (x.min(), x.max(), y.min(), y.max()) == (*columns, *rows)
    assert all((side == size).all() for side in sides)


def test_random_places_are_uniform_and_independent():
    trigger = plugin.parse("trigger", "patch:size=8,where=random")
    x, y, _, _ = trigger.place(90000, 32, 32, generator(0), "train").double().T
    counts = torch.bincount(x.long(), minlength=17)[8:]
    assert (counts / 10000 - 1).abs().max() < 0.05  # nine columns, 10,000 each
    assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.02


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (0.6, 0.6), (0.5, 1), (0.65, 0.7)])
def test_a_range_of_any_shares_stays_inside(low, high):
    found = stamped(f"size=5,where=random,test_low={low},test_high={high}", 16, 20, count=50)
    x, y, side, _ = found.boxes.T
    assert (side == 5).all() and x.min() >= 0 and y.min() >= 0
    assert (x + side).max() <= 20 and (y + side).max() <= 16


@pytest.mark.parametrize(("size", "low"), [(25, 0.25), (32, 0.1), (8, 0.8), (1, 1)])
@pytest.mark.parametrize("phase", ["train", "test"])
def test_a_patch_that_would_leave_the_image_is_refused(size, low, phase):
    spec = f"size={size},where=random,{phase}_low={low},{phase}_high=1"
    with pytest.raises(
        InputError, match=f"trigger of {size} pixels leaves the image of 40x32 where it begins at {low}"
    ):
        stamped(spec, 32, 40, phase=phase)


@pytest.mark.parametrize("phase", ["train", "test"])
def test_a_range_that_ends_before_it_begins_is_refused(phase):
    with pytest.raises(InputError, match=f"patch: {phase}_low=0.95 is above {phase}_high=0.05; swap them"):
        plugin.parse("trigger", f"patch:{phase}_low=0.95,{phase}_high=0.05")


@pytest.mark.parametrize(("where", "corner"), [("tl", (9, 9)), ("tr", (7, 9)), ("bl", (9, 3)), ("br", (7, 3))])
def test_a_margin_is_kept_or_refused(where, corner):
    assert stamped(f"size=4,where={where},margin=9", 16, 20).boxes[0, :2].tolist() == list(corner)
    with pytest.raises(
        InputError, match="4 pixels with margin=13 does not fit the image of 20x16; give margin=12 at most"
    ):
        stamped(f"size=4,where={where},margin=13", 16, 20)
    assert stamped("size=4,where=center,margin=13", 16, 20).boxes[0, :2].tolist() == [8, 6]  # it has no border


@pytest.mark.parametrize("where", ["tl", "tr", "bl", "br", "center", "random"])
@pytest.mark.parametrize("phase", ["train", "test"])
def test_the_papers_sizes_fit_small_images(where, phase):
    for size in (0.2, 3, 5, 8, 10):
        assert stamped(f"size={size},where={where}", 32, 32, phase=phase).boxes.shape == (1, 4)


def test_the_margin_is_for_fixed_places():
    near, far = (stamped(f"size=4,where=random,margin={margin}", 16, 16, count=9).boxes for margin in (0, 5))
    assert torch.equal(near, far)
