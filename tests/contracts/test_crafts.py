"""The laws of --craft, for every file on the shelf, with triggers of all kinds."""

import dataclasses

import pytest
import torch

from micro import assert_changed_in_boxes
from sslbd_cli import plugin
from sslbd_cli.core import loader
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Craft, Material
from sslbd_cli.triggers._contract import Trigger

COUNT = 12


@pytest.fixture(params=plugin.listing("craft"))
def craft(request, spec) -> Craft:
    return plugin.parse("craft", spec("craft", request.param))


@pytest.fixture(params=plugin.listing("trigger"))
def trigger(request, spec) -> Trigger:
    return plugin.parse("trigger", spec("trigger", request.param, size=5))


def photos(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    drawn = torch.randint(60, 200, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8)


def material(craft: Craft, references: int | None = None, height: int = 20, width: int = 24) -> Material:
    wanted = craft.reference_count(COUNT) if references is None else references
    canvases = photos(COUNT, 30, 18, 1) if craft.canvases else None
    return Material(photos(wanted, height, width, 0), canvases=canvases)


def invisible(trigger: Trigger) -> Trigger:
    """A trigger in the same place that changes nothing."""
    unseen = type("Unseen", (type(trigger),), {"stamp": lambda self, x, boxes, gen, phase: x})
    names = [field.name for field in dataclasses.fields(trigger)]
    return unseen(**{name: getattr(trigger, name) for name in names})


def test_poisons_are_as_many_and_as_shaped_as_asked(craft, trigger):
    made = material(craft)
    crafted = craft.craft(made, trigger, COUNT, generator(0))
    assert crafted.images.shape == (COUNT, *made.references.shape[1:]) and crafted.images.dtype == torch.uint8
    assert crafted.boxes.shape == (COUNT, 4) and crafted.boxes.dtype == torch.int64
    assert crafted.reference.shape == (COUNT,)
    assert set(crafted.reference.tolist()) == set(range(craft.reference_count(COUNT)))


def test_the_material_is_left_as_it_is(craft, trigger):
    made, same = material(craft), material(craft)
    craft.craft(made, trigger, COUNT, generator(0))
    assert torch.equal(made.references, same.references)
    assert made.canvases is None or torch.equal(made.canvases, same.canvases)


def test_one_seed_is_one_result(craft, trigger):
    first, again = (craft.craft(material(craft), trigger, COUNT, generator(3)) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.reference, again.reference)


def test_the_trigger_is_in_its_box_and_nowhere_else(craft, trigger):
    crafted = craft.craft(material(craft), trigger, COUNT, generator(0))
    without = craft.craft(material(craft), invisible(trigger), COUNT, generator(0))
    assert torch.equal(crafted.boxes, without.boxes)
    assert_changed_in_boxes(without.images, crafted.images, crafted.boxes)


def test_a_patch_is_the_patch_of_the_test_images(craft):
    trigger = plugin.parse("trigger", "patch:size=5")
    crafted = craft.craft(material(craft), trigger, COUNT, generator(0))
    wanted = (trigger.pattern(5) * 255).to(torch.uint8)
    for image, (x, y, wide, high) in zip(crafted.images, crafted.boxes.tolist(), strict=True):
        assert torch.equal(image[:, y : y + high, x : x + wide], wanted)


def test_one_reference_is_enough_where_other_images_are_needed(craft, trigger):
    if craft.canvases:
        crafted = craft.craft(material(craft, references=1), trigger, COUNT, generator(0))
        assert (crafted.reference == 0).all()


def test_other_images_show_in_the_poisons(craft):
    if craft.canvases:
        trigger = plugin.parse("trigger", "patch:size=5")
        made = material(craft)
        other = Material(made.references, canvases=made.canvases.flip(0))
        first, second = (craft.craft(m, trigger, COUNT, generator(0)).images for m in (made, other))
        assert (first != second).flatten(1).any(1).all()


def test_parts_do_not_show(craft, trigger, monkeypatch):
    whole = craft.craft(material(craft), trigger, COUNT, generator(0))
    monkeypatch.setitem(loader.AT_ONCE, "images", (5, 5))
    parts = craft.craft(material(craft), trigger, COUNT, generator(0))
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.boxes, parts.boxes)


def test_a_trigger_that_does_not_fit_is_refused(craft):
    for size in (25, 16) if craft.canvases else (25,):
        with pytest.raises(InputError, match=f"{size}x{size} pixels does not fit|of {size} pixels is larger"):
            craft.craft(material(craft), plugin.parse("trigger", f"patch:size={size}"), COUNT, generator(0))
