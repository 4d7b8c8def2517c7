"""Poisoning: exactly the rows, exactly the trigger, and a truth that says so."""

import dataclasses

import numpy as np
import pytest
import torch

from sslbd_cli.core import plugin, poison
from sslbd_cli.core.device import generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.poison import Budget, plant

PATCH = plugin.parse("trigger", "patch:size=5")
WANDERING = plugin.parse("trigger", "patch:size=5,where=random")
ROWS = np.array([3, 4, 17, 59])


@pytest.mark.parametrize("trigger", [PATCH, WANDERING], ids=["fixed", "random"])
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_poisoned_images_are_stamped_in_their_box_and_no_other_changes(dataset, trigger, mode):
    made = plant(dataset, trigger, ROWS, mode, seed=0)
    truth = made.truth
    assert len(made.images) == (60 if mode == "replace" else 64)
    assert sorted(truth.source[truth.poisoned].tolist()) == ROWS.tolist()
    for image, poisoned, box, source in zip(made.images, truth.poisoned, truth.box.tolist(), truth.source, strict=True):
        clean = dataset.images[source]
        if poisoned:
            x, y, width, height = box
            assert (width, height) == (5, 5)
            expected = clean.copy()
            expected[:, y : y + 5, x : x + 5] = (trigger.pattern(5) * 255).round().byte().numpy()
            assert np.array_equal(image, expected)
        else:
            assert np.array_equal(image, clean) and box == [0, 0, 0, 0]
    assert np.array_equal(made.labels, dataset.labels[truth.source])
    assert np.array_equal(made.ids, dataset.ids[truth.source])


def test_replace_keeps_the_order_and_append_hides_the_poison_in_it(dataset):
    assert plant(dataset, PATCH, ROWS, "replace", 0).truth.source.tolist() == list(range(60))
    appended = plant(dataset, PATCH, ROWS, "append", 0).truth
    assert sorted(appended.source.tolist()) == sorted([*range(60), *ROWS])
    assert np.flatnonzero(appended.poisoned).tolist() != [60, 61, 62, 63]


def test_the_input_is_left_as_it_was(dataset):
    before = dataset.images.copy()
    plant(dataset, PATCH, ROWS, "replace", 0)
    assert np.array_equal(dataset.images, before) and dataset.truth is None


def test_one_seed_is_one_dataset(dataset):
    first, again, other = (plant(dataset, WANDERING, ROWS, "append", seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert np.array_equal(first.truth.box, again.truth.box)


def test_chunks_do_not_show(dataset, monkeypatch):
    whole = plant(dataset, WANDERING, np.arange(60), "replace", 0)
    monkeypatch.setattr(poison, "CHUNK", 7)
    assert plant(dataset, WANDERING, np.arange(60), "replace", 0).sha256 == whole.sha256


def test_a_second_poison_keeps_the_first_in_the_truth(dataset):
    once = plant(dataset, PATCH, np.array([1, 2]), "replace", 0)
    twice = plant(once, plugin.parse("trigger", "patch:size=3,where=tl"), np.array([2, 9]), "append", 0).truth
    by_source = {}
    for source, poisoned, box in zip(twice.source, twice.poisoned, twice.box[:, 2], strict=True):
        by_source.setdefault(int(source), []).append((bool(poisoned), int(box)))
    assert by_source[1] == [(True, 5)] and by_source[3] == [(False, 0)]
    assert sorted(by_source[2]) == [(True, 3), (True, 5)]
    assert sorted(by_source[9]) == [(False, 0), (True, 3)]


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (Budget(count=7), 7),
        (Budget(rate=0.1), 6),
        (Budget(class_rate=0.5), 10),
        (Budget(rate=0.01), 1),
        (Budget(rate=1), 60),
    ],
)
def test_the_budget_in_images(budget, count):
    assert budget.images(60, 20) == count


def test_a_budget_of_nothing_or_of_an_unknown_class_is_refused():
    with pytest.raises(InputError, match="no image at all of 60"):
        Budget(rate=0.001).images(60, 20)
    with pytest.raises(InputError, match="--class-rate needs labels and --target"):
        Budget(class_rate=0.5).images(60, None)


def test_labels_are_not_read_by_selectors_that_do_not_ask(dataset):
    chosen = plugin.parse("select", "random")
    shuffled = dataclasses.replace(dataset, labels=dataset.labels[::-1].copy())
    first, second = (poison.choose(d, chosen, 1, Budget(rate=0.2), 0) for d in (dataset, shuffled))
    assert np.array_equal(first, second)


def test_the_patch_is_made_of_seeded_saturated_blocks():
    pattern = plugin.parse("trigger", "patch:blocks=4,seed=3").pattern(8)
    assert set(pattern.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(pattern, pattern[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert not torch.equal(pattern, plugin.parse("trigger", "patch:blocks=4,seed=4").pattern(8))


@pytest.mark.parametrize(("fill", "colour"), [("white", [255] * 3), ("black", [0] * 3), ("0a80ff", [10, 128, 255])])
def test_a_solid_patch_has_its_colour(fill, colour):
    trigger = plugin.parse("trigger", f"patch:size=3,where=tl,margin=0,fill={fill}")
    stamped = trigger(torch.full((1, 3, 8, 8), 77, dtype=torch.uint8), generator(0)).images
    assert (stamped[0, :, :3, :3] == torch.tensor(colour).view(3, 1, 1)).all()


@pytest.mark.parametrize("fill", ["", "red", "12345", "1234567", "gggggg", "12 34 "])
def test_an_unknown_colour_is_refused(fill):
    with pytest.raises(InputError, match="expected blocks, white, black or six hexadecimal digits"):
        plugin.parse("trigger", f"patch:fill={fill}")


@pytest.mark.parametrize(
    ("where", "corner"), [("tl", (1, 1)), ("tr", (11, 1)), ("bl", (1, 11)), ("br", (11, 11)), ("center", (6, 6))]
)
def test_places(where, corner):
    trigger = plugin.parse("trigger", f"patch:size=4,where={where},margin=1")
    box = trigger(torch.zeros(1, 3, 16, 16), generator(0)).boxes[0].tolist()
    assert box == [*corner, 4, 4]


@pytest.mark.parametrize(("size", "pixels"), [(0.25, 4), (0.001, 1), (1, 1), (5, 5), (0.99, 16), (16, 16)])
def test_sizes_are_pixels_from_one_up_and_shares_below(size, pixels):
    trigger = plugin.parse("trigger", f"patch:size={size}")
    assert trigger(torch.zeros(1, 3, 16, 20), generator(0)).boxes[0, 2:].tolist() == [pixels, pixels]


def test_an_image_trigger_pastes_its_file_and_knows_it_again(tmp_path):
    from PIL import Image

    path = tmp_path / "t.png"
    Image.new("RGB", (3, 3), (200, 100, 50)).save(path)
    trigger = plugin.parse("trigger", f"image:file={path},size=4,where=tl,margin=0")
    stamped = trigger(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator(0)).images[0]
    assert (stamped[:, :4, :4] == torch.tensor([200, 100, 50]).view(3, 1, 1)).all() and not stamped[:, 4:].any()
    Image.new("RGB", (3, 3)).save(path)
    with pytest.raises(InputError, match="not the picture it was"):
        plugin.parse("trigger", str(trigger))


def test_an_image_trigger_without_a_picture_is_refused(tmp_path):
    for text in ("image", "image:file=missing.png", f"image:file={tmp_path}"):
        with pytest.raises(InputError, match="give image:file=PATH"):
            plugin.parse("trigger", text)
    (tmp_path / "t.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match="not a readable picture"):
        plugin.parse("trigger", f"image:file={tmp_path}/t.png")(torch.zeros(1, 3, 8, 8), generator(0))
