"""Poisoning: exactly the rows, exactly the trigger, and a truth that says so."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core import loader
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.poison.plant import Planting, plant, poison

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
    monkeypatch.setitem(loader.AT_ONCE, "pixels", (7 * 3 * 16 * 16, 1))
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


@dataclass(frozen=True, kw_only=True)
class Showing(Craft):
    """Make poisons that are the canvases, so that what was used shows, and remember the material."""

    canvases: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    seen: ClassVar[list[Material]] = []

    def reference_count(self, count):
        return count

    def craft(self, material, trigger, count, gen):
        self.seen.append(material)
        boxes = torch.tensor([[1, 2, 3, 4]]).repeat(count, 1)
        return Crafted(material.canvases, boxes, torch.arange(count) % len(material.references))


def planting(count: int, craft: Craft | None = None, mode: str = "append", seed: int = 0) -> Planting:
    return Planting(trigger=WANDERING, craft=craft or Showing(), count=count, mode=mode, seed=seed)


def poisons(made):
    return made.images[made.truth.poisoned]


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_the_stamp_craft_is_plain_stamping(dataset, mode):
    stamp = plugin.parse("craft", "stamp")
    made, plain = poison(dataset, ROWS, planting(4, stamp, mode)), plant(dataset, WANDERING, ROWS, mode, 0)
    assert made.sha256 == plain.sha256
    assert all(np.array_equal(getattr(made.truth, n), getattr(plain.truth, n)) for n in ("poisoned", "box", "source"))


def test_appended_poisons_are_labelled_as_their_reference_and_hidden(dataset):
    made = poison(dataset, ROWS, planting(30))
    truth = made.truth
    assert len(made.images) == 90 and truth.poisoned.sum() == 30
    assert (truth.box[truth.poisoned] == [1, 2, 3, 4]).all() and not truth.box[~truth.poisoned].any()
    sources, uses = np.unique(truth.source[truth.poisoned], return_counts=True)
    assert sources.tolist() == ROWS.tolist() and sorted(uses) == [7, 7, 8, 8]
    assert sorted(truth.source[~truth.poisoned]) == list(range(60))
    assert np.array_equal(made.labels, dataset.labels[truth.source])
    assert np.array_equal(made.ids, dataset.ids[truth.source])
    assert np.array_equal(made.images[~truth.poisoned], dataset.images[truth.source[~truth.poisoned]])
    assert np.flatnonzero(truth.poisoned).tolist() != list(range(60, 90))


def test_replacing_poisons_take_the_place_of_their_references(dataset):
    made = poison(dataset, ROWS, planting(4, mode="replace"))
    assert np.flatnonzero(made.truth.poisoned).tolist() == ROWS.tolist()
    assert made.truth.source.tolist() == list(range(60)) and np.array_equal(made.labels, dataset.labels)
    kept = np.setdiff1d(np.arange(60), ROWS)
    assert np.array_equal(made.images[kept], dataset.images[kept])
    assert np.array_equal(Showing.seen[-1].references.numpy(), dataset.images[ROWS])


def test_a_real_craft_does_so_too(dataset):
    made = poison(dataset, ROWS, planting(9, plugin.parse("craft", "noisy-alignment:references=4")))
    assert len(made.images) == 69 and set(made.truth.source[made.truth.poisoned]) == set(ROWS)
    again, other = (poison(dataset, ROWS, planting(9, Showing(), seed=seed)).sha256 for seed in (0, 1))
    assert again != other


def numbered(count: int, size: int = 16) -> Dataset:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(size, 2).repeat(size, 3)
    return Dataset(images=images)


@pytest.mark.parametrize("count", [5, 8, 12, 19])
def test_every_canvas_is_used_before_any_is_used_again(dataset, count):
    used = poisons(poison(dataset, ROWS, planting(count), numbered(8)))[:, 0, 0, 0]
    times = np.bincount(used, minlength=8)
    assert times.max() - times.min() <= 1 and times.sum() == count
    rounds = Showing.seen[-1].canvases[:, 0, 0, 0].split(8)
    assert all(len(set(part.tolist())) == len(part) for part in rounds)
    assert rounds[0].tolist() != list(range(count))[:8]


def test_canvases_may_have_another_size(dataset):
    crafted = poison(dataset, ROWS, planting(6, plugin.parse("craft", "corruptencoder")), numbered(9, size=21))
    assert poisons(crafted).shape == (6, 3, 16, 16)


def test_own_canvases_are_not_references_and_are_drawn_without_labels(dataset):
    used = {image.tobytes() for image in poisons(poison(dataset, ROWS, planting(56)))}
    assert used == {dataset.images[row].tobytes() for row in range(60) if row not in ROWS}
    relabelled = dataclasses.replace(dataset, labels=dataset.labels[::-1].copy())
    first, second = (poison(d, ROWS, planting(7)) for d in (dataset, relabelled))
    assert np.array_equal(first.images, second.images)
    with pytest.raises(InputError, match="none is left for the canvases"):
        poison(dataset, np.arange(60), planting(60))


@pytest.mark.parametrize(("count", "mode"), [(4, "replace"), (4, "append"), (9, "append")])
def test_masks_follow_their_references(dataset, count, mode):
    masks = np.arange(1, 5, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    poison(dataset, ROWS, planting(count, mode=mode), masks=masks)
    seen = Showing.seen[-1]
    for reference, mask in zip(seen.references.numpy(), seen.masks[:, 0, 0].tolist(), strict=True):
        assert np.array_equal(reference, dataset.images[ROWS[mask - 1]])


def test_what_does_not_fit_together_is_refused(dataset):
    with pytest.raises(InputError, match="5 poisons cannot take the place of 4 chosen images; give --mode append"):
        poison(dataset, ROWS, planting(5, mode="replace"))
    with pytest.raises(InputError, match="one poison of each chosen image, not 5 of 4"):
        poison(dataset, ROWS, planting(5, plugin.parse("craft", "stamp")))
    with pytest.raises(InputError, match="--craft noisy-alignment has no use for masks"):
        poison(dataset, ROWS, planting(4, plugin.parse("craft", "noisy-alignment")), masks=np.zeros((4, 16, 16)))
    for masks in (np.zeros((3, 16, 16), np.uint8), np.zeros((4, 16, 16))):
        with pytest.raises(InputError, match=r"masks: expected uint8 of shape \(4, 16, 16\)"):
            poison(dataset, ROWS, planting(4), masks=masks)


@pytest.mark.parametrize("spec", ["sinusoid:delta=0.01", "ctrl:train_magnitude=0.01", "blend:alpha=0.001"])
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_poison_that_changes_no_pixel_is_refused(dataset, spec, mode):
    with pytest.raises(InputError, match="changes no pixel of the 4 images it is put in; make it stronger"):
        plant(dataset, plugin.parse("trigger", spec), ROWS, mode, 0)


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
    with pytest.raises(InputError, match=r"expected blocks, .*white, black or six hexadecimal digits"):
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
    trigger = plugin.parse("trigger", f"patch:size={size},margin=0")
    assert trigger(torch.zeros(1, 3, 16, 20), generator(0)).boxes[0, 2:].tolist() == [pixels, pixels]


def test_an_image_trigger_pastes_its_file_and_knows_it_again(tmp_path):
    from PIL import Image

    path = tmp_path / "t.png"
    Image.new("RGB", (3, 3), (200, 100, 50)).save(path)
    trigger = plugin.parse("trigger", f"image:file={path},size=4,where=tl,margin=0")
    stamped = trigger(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator(0)).images[0]
    assert (stamped[:, :4, :4] == torch.tensor([200, 100, 50]).view(3, 1, 1)).all() and not stamped[:, 4:].any()
    Image.new("RGB", (3, 3)).save(path)
    with pytest.raises(InputError, match="not the file it was"):
        plugin.parse("trigger", str(trigger))


def test_an_image_trigger_without_a_picture_is_refused(tmp_path):
    for text in ("image", "image:file=missing.png", f"image:file={tmp_path}"):
        with pytest.raises(InputError, match="give image:file=PATH"):
            plugin.parse("trigger", text)
    (tmp_path / "t.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match="not a readable picture"):
        plugin.parse("trigger", f"image:file={tmp_path}/t.png")(torch.zeros(1, 3, 8, 8), generator(0))
