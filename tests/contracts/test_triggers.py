"""The laws of --trigger, for every file on the shelf."""

import itertools
import re

import pytest
import torch

from micro import assert_changed_in_boxes
from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger


@pytest.fixture(params=plugin.listing("trigger"))
def trigger(request, spec) -> Trigger:
    return plugin.parse("trigger", spec("trigger", request.param))


@pytest.fixture(params=["fixed", "random"])
def placed(request, spec, trigger) -> Trigger:
    """Each trigger as it is, and with a random place if it has one."""
    if request.param == "fixed":
        return trigger
    if "where" not in {key.name for key in plugin.listing("trigger")[trigger.name].keys}:
        return trigger
    return plugin.parse("trigger", spec("trigger", trigger.name, where="random"))


def photos(dtype: torch.dtype, height: int = 20, width: int = 16) -> torch.Tensor:
    images = torch.randint(0, 256, (20, 3, height, width), generator=torch.Generator().manual_seed(1))
    return images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype)


DTYPES = (torch.uint8, torch.float32, torch.float64)


def test_images_keep_their_form_and_the_input_its_pixels(placed):
    for dtype, phase in itertools.product(DTYPES, ("train", "test")):
        images = photos(dtype)
        before = images.clone()
        stamped = placed(images, generator(0), phase).images
        assert torch.equal(images, before), (dtype, phase)
        assert (stamped.shape, stamped.dtype, stamped.device) == (images.shape, images.dtype, images.device), phase
        assert stamped.min() >= 0 and (dtype == torch.uint8 or stamped.max() <= 1), (dtype, phase)


def test_every_image_changes_within_its_box_alone(placed):
    for dtype in DTYPES:
        images = photos(dtype)
        found = placed(images, generator(0))
        assert found.boxes.shape == (len(images), 4) and found.boxes.dtype == torch.int64, dtype
        assert_changed_in_boxes(images, found.images, found.boxes)


def test_one_seed_is_one_result(placed):
    images = photos(torch.uint8)
    first, second, other = (placed(images, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.images, second.images) and torch.equal(first.boxes, second.boxes)
    if "where=random" in str(placed):
        assert not torch.equal(first.boxes, other.boxes)


def test_a_batch_is_its_images_one_by_one(placed):
    images, gen, single = photos(torch.uint8), generator(0), generator(0)
    batch = placed(images, gen)
    one_by_one = [placed(image[None], single) for image in images]
    assert torch.equal(batch.images, torch.cat([s.images for s in one_by_one]))
    assert torch.equal(batch.boxes, torch.cat([s.boxes for s in one_by_one]))


def test_uint8_is_the_rounded_float(placed):
    whole = placed(photos(torch.uint8), generator(0)).images
    exact = placed(photos(torch.float32), generator(0)).images
    assert torch.equal(whole, exact.mul(255).round().to(torch.uint8))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels(placed):
    for dtype in DTYPES:
        images = photos(dtype)
        here, there = placed(images, generator(0)).images, placed(images.cuda(), generator(0)).images
        assert there.is_cuda and torch.equal(here, there.cpu()), dtype


def test_square_images_of_other_sizes_work(placed):
    for size in (8, 33, 64):
        images = photos(torch.uint8, size, size)
        assert not torch.equal(placed(images, generator(0)).images, images)


#: Corners of a patch of 4 pixels on images 20 wide and 16 high, by the formula int(low L) ... int(high L - 4).
RANGES = {
    ("train", ""): (range(5, 12), range(4, 9)),
    ("test", ""): (range(2, 15), range(1, 11)),
    ("train", "train"): (range(17), range(13)),
    ("test", "train"): (range(2, 15), range(1, 11)),
    ("test", "test"): (range(17), range(13)),
}


@pytest.mark.parametrize(("phase", "wide"), RANGES)
def test_random_places_are_all_over_the_range_of_the_phase(spec, phase, wide):
    for name, info in plugin.listing("trigger").items():
        if "where" not in {key.name for key in info.keys}:
            continue
        keys = {f"{wide}_low": 0, f"{wide}_high": 1} if wide else {}
        trigger = plugin.parse("trigger", spec("trigger", name, where="random", size=4, **keys))
        boxes = trigger(torch.zeros(2000, 3, 16, 20, dtype=torch.uint8), generator(0), phase).boxes
        columns, rows = RANGES[phase, wide]
        assert set(boxes[:, 0].tolist()) == set(columns) and set(boxes[:, 1].tolist()) == set(rows)
        assert (boxes[:, 2:] == 4).all()


def test_a_trigger_without_a_place_has_the_whole_image_as_its_box(trigger):
    if "size" not in {key.name for key in plugin.listing("trigger")[trigger.name].keys} and not trigger.has_place:
        found = trigger(photos(torch.uint8), generator(0))
        assert found.boxes.tolist() == [[0, 0, 16, 20]] * 20


def test_it_says_where_it_comes_from_and_what_destroys_it(trigger):
    doc = plugin.listing("trigger")[trigger.name].doc
    assert re.search(r"^Source: .*\d{4}", doc, re.MULTILINE), "name the paper and its year"
    assert re.search(r"^Destroyed by: \w", doc, re.MULTILINE)


def test_a_trigger_larger_than_the_image_is_refused(spec):
    for name, info in plugin.listing("trigger").items():
        if "size" in {key.name for key in info.keys}:
            trigger = plugin.parse("trigger", spec("trigger", name, size=17))
            with pytest.raises(InputError, match="17 pixels is larger than the image of 16x20"):
                trigger(photos(torch.uint8), generator(0))
