"""Noisy Alignment: where reference, shadow image and trigger are, in plain colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.canvas import Scene, side_by_side
from sslbd_cli.poison.contract import Crafted, Material
from sslbd_cli.poison.crafts import _planner

RED, GREEN, WHITE = [200, 0, 0], [0, 200, 0], [255, 255, 255]
PATCH = plugin.parse("trigger", "patch:size=6,fill=white")


def plain(colour: list[int], count: int, size: int = 32) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(count, 3, size, size)


def craft(keys: str, count: int = 40, size: int = 32) -> Crafted:
    made = Material(plain(RED, 3, size), canvases=plain(GREEN, count, 48))
    return plugin.parse("craft", "noisy-alignment" + keys).craft(made, PATCH, count, generator(0))


def colours(image: torch.Tensor, rows: slice, columns: slice) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image[:, rows, columns].flatten(1).T.tolist()}


HALF = {"l": (slice(None), slice(0, 16)), "r": (slice(None), slice(16, 32)),
        "t": (slice(0, 16), slice(None)), "b": (slice(16, 32), slice(None))}  # fmt: skip


@pytest.mark.parametrize("orientation", ["lr", "rl", "tb", "bt"])
def test_each_orientation_puts_the_reference_first_and_the_trigger_amid_the_shadow(orientation):
    crafted = craft(f":orientation={orientation}", count=4)
    first, second = HALF[orientation[0]], HALF[orientation[1]]
    centre = {"l": (5, 13), "r": (21, 13), "t": (13, 5), "b": (13, 21)}[orientation[1]]
    for image, box in zip(crafted.images, crafted.boxes.tolist(), strict=True):
        assert colours(image, *first) == {tuple(RED)}
        assert colours(image, *second) == {tuple(GREEN), tuple(WHITE)}
        assert box == [*centre, 6, 6]
        assert (image == 255).all(0).sum() == 36 and (image[:, box[1] : box[1] + 6, box[0] : box[0] + 6] == 255).all()


def test_orientations_are_uniform():
    images = craft("", count=800).images
    red = (images == torch.tensor(RED).view(3, 1, 1)).all(1)
    sides = [red[:, 3, 3] & red[:, 28, 3], red[:, 3, 28] & red[:, 28, 28], red[:, 3, 3] & red[:, 3, 28],
             red[:, 28, 3] & red[:, 28, 28]]  # fmt: skip
    counts = [int(side.sum()) for side in sides]
    assert sum(counts) == 800 and all(150 < count < 250 for count in counts)


def test_a_wider_canvas_has_a_smaller_reference():
    image = craft(":wide=3.2,orientation=lr", count=1).images[0]
    assert colours(image, slice(None), slice(0, 10)) == {tuple(RED)} and colours(image, slice(0, 9), slice(10, 32)) == {
        tuple(GREEN)
    }


def test_padding_keeps_proportions_and_repeats_the_border():
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(1, 3, 32, 32)
    made = Material(ramp, canvases=plain(GREEN, 1))
    image = (
        plugin.parse("craft", "noisy-alignment:fit=pad,orientation=lr").craft(made, PATCH, 1, generator(0)).images[0]
    )
    half = np.asarray(Image.fromarray(ramp[0, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR), np.int64)
    assert np.abs(image[0, 8:24, :16].numpy() - half).max() <= 1
    assert (image[:, :8] == image[:, 8:9]).all() and (image[:, 24:] == image[:, 23:24]).all()


def test_parts_are_squeezed_as_pillow_would():
    rng = np.random.default_rng(0)
    reference, shadow = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (reference, shadow)]
    made = Material(tensors[0], canvases=tensors[1])
    image = plugin.parse("craft", "noisy-alignment:orientation=lr").craft(made, PATCH, 1, generator(0)).images[0]
    wanted = [np.asarray(Image.fromarray(i).resize((16, 32), Image.Resampling.BILINEAR)) for i in (reference, shadow)]
    away = np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.concatenate(wanted, 1))
    away[13:19, 21:27] = 0  # the trigger
    assert away.max() <= 1


def test_the_released_place_is_not_mirrored():
    canvas = Scene((224, 448), split=224, top=0, rows=224)
    layout = side_by_side(canvas, torch.full((2, 2), 50), torch.tensor([False, True]), "released")
    assert layout.trigger.tolist() == [[324, 100, 50, 50], [100, 100, 50, 50]]  # 100 ... 150 of 224, in both
    near_the_end = side_by_side(canvas, torch.full((1, 2), 200), torch.tensor([True]), "released")
    assert near_the_end.trigger.tolist() == [[24, 24, 200, 200]]


def test_mirrored_canvases_have_mirrored_triggers():
    canvas = Scene((32, 32), split=25, top=0, rows=32)
    left, right = side_by_side(canvas, torch.full((2, 2), 4), torch.tensor([False, True]), "center").trigger.tolist()
    assert left == [26, 14, 4, 4] and right == [2, 14, 4, 4]  # 26 + 4 + 2 = 32


def test_wide_0_is_the_planners_choice():
    wide = _planner.plan((32, 32), (6, 6), Recipe(scale=(0.3, 1)), fit="squeeze", place="center", event="weak").wide
    planned, said = (craft(f":wide={w},crop_scale=0.3") for w in (0, wide))
    assert wide != 2.0 and torch.equal(planned.images, said.images)


def test_references_are_used_in_turn():
    assert torch.bincount(craft("", count=30).reference).tolist() == [10, 10, 10]
    made = plugin.parse("craft", "noisy-alignment")
    assert made.reference_count(30) == 30
    made = plugin.parse("craft", "noisy-alignment:references=7")
    assert (made.reference_count(30), made.reference_count(5)) == (7, 5)


@pytest.mark.parametrize("wide", ["0.5", "1", "1.01"])
def test_a_canvas_without_room_for_a_shadow_is_refused(wide):
    with pytest.raises(InputError, match=r"wide=.*: expected a value >= 1.05, or 0 to plan it"):
        plugin.parse("craft", f"noisy-alignment:wide={wide}")


def test_a_plan_is_settled_said_and_written_into_the_history(sslbd, dataset, tmp_path):
    kinds.write(dataset, str(tmp_path / "d.h5"))
    words = ("--craft", "noisy-alignment:wide=0", "--trigger", "patch:size=3", "--target", 1, "--count", 4)
    status, _, err = sslbd("poison", tmp_path / "d.h5", *words, "-o", tmp_path / "p.h5")
    made = kinds.read(str(tmp_path / "p.h5"), kinds.Dataset).history[-1]["args"]["--craft"]
    wide = plugin.parse("craft", made).wide
    assert status == 0 and wide > 1 and f"planned wide={wide:g}: 0." in err
    assert plugin.parse("craft", "noisy-alignment").settle((16, 16), plugin.parse("trigger", "patch"))[1] == ""
