"""CorruptEncoder: the released geometry on its own canvas, masks, backgrounds and the support pairs."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.canvas import Scene
from sslbd_cli.poison.contract import Crafted, Material
from sslbd_cli.poison.crafts import _planner

NATIVE = Scene((300, 600), split=300, top=0, rows=300)  # a 300-pixel object on its canvas
PATCH = plugin.parse("trigger", "patch:size=5,fill=ffffff")
PLAIN = plugin.parse("craft", "corruptencoder")
COLOURS = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [200, 0, 200], [0, 200, 200]])


def plain(*colours: int, size: int = 32) -> torch.Tensor:
    return COLOURS[list(colours)].to(torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, size, size)


def craft(spec: str, references: torch.Tensor, count: int = 200, **parts: torch.Tensor) -> Crafted:
    canvases = parts.pop("canvases", plain(*[1] * count))
    return plugin.parse("craft", spec).craft(
        Material(references, canvases=canvases, **parts), PATCH, count, generator(0)
    )


def uniforms(count: int) -> torch.Tensor:
    return torch.rand(count, 4, generator=generator(0), dtype=torch.float64)


def test_the_released_intervals():
    layout = PLAIN.layout(NATIVE, torch.full((50000, 2), 40), uniforms(50000))
    left = layout.reference[:, 0] < 150
    assert 0.48 < left.double().mean() < 0.52
    x, y, wide, high = layout.reference[left].T
    assert (x.min(), x.max()) == (0, 29) and (y == 0).all() and (wide == 300).all() and (high == 300).all()
    at, down, _, _ = layout.trigger[left].T
    gap = at - (x + 300)
    assert gap.min() == 75 and at.max() == 600 - 75 - 40 - 1  # U(o_x + o_w + .125 p_w, p_w - .125 p_w - 40)
    assert (down.min(), down.max()) == (75, 225 - 40 - 1)  # U(.25 p_h, .75 p_h - 40)
    mirrored = layout.trigger[~left]
    assert mirrored[:, 0].min() >= 75 and (layout.reference[~left][:, 0] - mirrored[:, 0] - 40).min() >= 74


def test_its_chances_on_its_own_canvas():
    count = 200_000
    layout = PLAIN.layout(NATIVE, torch.full((count, 2), 40), uniforms(count))
    found = _planner.chances(layout, _planner.views(NATIVE.shape, Recipe(scale=(0.2, 1.0)), count))
    assert found.weak == pytest.approx(0.093, abs=0.006) and found.strict == pytest.approx(0.023, abs=0.006)


@pytest.mark.parametrize("side", [9, 12, 16])
def test_an_empty_interval_gives_the_middle_and_never_covers_the_object(side):
    scene = Scene((32, 32), split=16, top=0, rows=32)
    layout = PLAIN.layout(scene, torch.full((500, 2), side), uniforms(500))
    left = layout.reference[:, 0] < 8
    ends = layout.reference[:, 0] + 16
    assert (layout.trigger[left][:, 0] >= ends[left]).all() and (layout.trigger[left][:, 0] + side <= 32).all()
    before = layout.trigger[~left]
    assert (before[:, 0] + side <= layout.reference[~left][:, 0]).all() and (before[:, 0] >= 0).all()


def test_objects_stand_on_backgrounds_beside_triggers():
    crafted = craft("corruptencoder", plain(0), canvases=plain(*[1, 2] * 100))
    for number, (image, (x, y, _, _)) in enumerate(zip(crafted.images, crafted.boxes.tolist(), strict=True)):
        is_object = (image == COLOURS[0].view(3, 1, 1)).all(0)
        assert is_object.sum() == 16 * 32 and (is_object.all(0).sum() == 16)
        background = COLOURS[1 + number % 2].view(3, 1, 1)
        assert (image == background).all(0).sum() == 16 * 32 - 25
        assert (image[:, y : y + 5, x : x + 5] == 255).all()


def test_backgrounds_are_enlarged_and_keep_their_bottom():
    halves = torch.cat([torch.zeros(200, 3, 16, 32), torch.full((200, 3, 16, 32), 90)], 2).to(torch.uint8)
    images = craft("corruptencoder", plain(0), canvases=halves).images  # 64x32 wanted of 32x32: the lower half, twice
    background = (images == 90).all(1).sum((1, 2))
    assert (background == 16 * 32 - 25).all()
    large = torch.zeros(200, 3, 100, 100, dtype=torch.uint8)
    large[:, :, 68:] = 90
    assert ((craft("corruptencoder", plain(0), canvases=large).images == 90).all(1).sum((1, 2)) == 16 * 32 - 25).all()
    large[:, :, 68] = 30  # the uppermost row of the 32 that are wanted
    assert (craft("corruptencoder", plain(0), canvases=large).images == 30).all(1).any(2).any(1).all()


def test_masks_cut_the_object_out_with_a_soft_edge():
    reference, mask = plain(2).clone(), torch.zeros(1, 32, 32, dtype=torch.uint8)
    reference[:, :, 4:28, 6:18] = COLOURS[0].view(3, 1, 1).to(torch.uint8)
    mask[:, 4:28, 6:18] = 255
    mask[:, 4:16, 6:12] = 0  # the object is an L, red as its bounding box is
    images = craft("corruptencoder", reference, masks=mask).images
    red = (images == COLOURS[0].view(3, 1, 1)).all(1)
    assert (images[:, 2] == 255).sum((1, 2)).eq(25).all() and not ((images[:, 2] > 0) & (images[:, 2] < 255)).any()
    share = red.sum((1, 2)) / (16 * 32)
    assert (share > 0.55).all() and (share < 0.75).all()  # three quarters less the soft edge
    soft = (images[:, 0] > 0) & (images[:, 0] < 200) & (images[:, 1] > 0) & (images[:, 1] < 200)
    assert soft.sum((1, 2)).gt(50).all()


def test_an_empty_mask_is_refused():
    masks = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    masks[1] = 127
    with pytest.raises(InputError, match="the mask of reference 1 is empty"):
        craft("corruptencoder", plain(0, 2, 3), masks=masks)


def test_support_pairs_show_two_references_and_no_trigger():
    made = plugin.parse("craft", "corruptencoder:references=2,support=0.2,support_images=3")
    assert (made.reference_count(100), made.reference_count(1)) == (5, 1)
    crafted = craft(str(made), plain(0, 2, 3, 4, 5), count=100)
    bare = (crafted.boxes == 0).all(1)
    assert bare.sum() == 20 and crafted.reference.max() == 1
    seen = set()
    for image, reference in zip(crafted.images[bare], crafted.reference[bare].tolist(), strict=True):
        halves = [COLOURS.tolist().index(image[:, 0, column].tolist()) for column in (0, 31)]
        for half, colour in zip((image[:, :, :16], image[:, :, 16:]), halves, strict=True):
            assert (half == COLOURS[colour].view(3, 1, 1)).all()
        mine = (0, 2)[reference]
        assert mine in halves and len({3, 4, 5} & set(halves)) == 1
        seen.add(tuple(halves))
    assert len(seen) > 6  # both orders, all supports


def test_support_without_support_images_is_refused():
    with pytest.raises(InputError, match=r"support=0.2 needs more than the 3 references"):
        craft("corruptencoder:support=0.2", plain(0, 2, 3))
