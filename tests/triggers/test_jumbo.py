"""The jumbo distribution: what its seeds draw, and how one drawn trigger is laid over an image."""

from collections import Counter

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.triggers._contract import Trigger
from sslbd_cli.triggers.jumbo import draw

SEEDS = range(600)


def make(seed: int, **keys: object) -> Trigger:
    return plugin.parse("trigger", "jumbo:" + ",".join(f"{k}={v}" for k, v in {"seed": seed, **keys}.items()))


def first(side: int) -> int:
    """Return the first seed whose pattern has this side."""
    return next(seed for seed in SEEDS if draw(seed).pattern.shape[1] == side)


def photos(size: int) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_sides_opacities_and_places_are_those_of_the_paper():
    drawn = [draw(seed) for seed in SEEDS]
    sides = Counter(d.pattern.shape[1] for d in drawn)
    assert set(sides) == {2, 3, 4, 5, 32} and min(sides.values()) > 80  # 120 expected of each
    whole = [d.alpha for d in drawn if d.pattern.shape[1] == 32]
    patches = [d.alpha for d in drawn if d.pattern.shape[1] < 32]
    assert min(whole) >= 0.05 and max(whole) <= 0.2 and max(whole) - min(whole) > 0.13
    faint = [alpha for alpha in patches if alpha != 1]
    assert min(faint) >= 0.2 and 0.48 < max(faint) <= 0.5
    assert 0.19 < 1 - len(faint) / len(patches) < 0.31  # a quarter of U(0.2, 0.6) is above 0.5
    for axis in range(2):
        assert 0.45 < sum(d.corner[axis] for d in drawn) / len(drawn) < 0.55


def test_patterns_spill_over_the_range_by_up_to_its_width():
    patterns = [draw(seed).pattern for seed in SEEDS if draw(seed).pattern.shape[1] == 32]
    edge = torch.stack([((p == 0) | (p == 1)).double().mean() for p in patterns])
    assert all(0 <= float(p.min()) and float(p.max()) <= 1 for p in patterns)
    assert float(edge.min()) < 0.1 and 0.6 < float(edge.max()) <= 0.67  # 2 e / (1 + 2 e), e from 0 to 1


@pytest.mark.parametrize("side", [2, 5, 32])
def test_an_image_is_the_mix_by_hand(side):
    seed, images = first(side), photos(32)
    drawn = draw(seed)
    found = make(seed)(images, generator(0))
    (x, y), free = (int(share * (32 - side + 1)) for share in drawn.corner), 32 - side
    if side == 32:
        x = y = 0
    assert 0 <= x <= free and 0 <= y <= free
    expected = images.clone()
    for row in range(side):
        for column in range(side):
            here = (slice(None), slice(None), y + row, x + column)
            expected[here] = (1 - drawn.alpha) * images[here] + drawn.alpha * drawn.pattern[:, row, column]
    torch.testing.assert_close(found.images, expected)
    assert found.boxes.tolist() == [[x, y, side, side]] * 3


def test_it_has_a_place_where_it_is_a_patch_alone():
    assert make(first(4)).has_place
    assert not make(first(32)).has_place


def test_other_sizes_get_the_same_cells_enlarged():
    seed = first(3)
    small, large = make(seed)(photos(32), generator(0)), make(seed)(photos(64), generator(0))
    assert large.boxes[0, 2] == 2 * small.boxes[0, 2] == 6
    assert abs(int(large.boxes[0, 0]) - 2 * int(small.boxes[0, 0])) <= 2
    black = make(seed)(torch.zeros(1, 3, 64, 64), generator(0)).images
    x, y, side, _ = large.boxes[0].tolist()
    patch = black[0, :, y : y + side, x : x + side]
    assert torch.equal(patch[:, ::2, ::2], patch[:, 1::2, 1::2])


def test_scale_enlarges_patches_but_no_whole_images():
    boxes = {scale: make(first(5), scale=scale)(photos(32), generator(0)).boxes for scale in (1, 2, 6)}
    assert [int(boxes[scale][0, 2]) for scale in (1, 2, 6)] == [5, 10, 30]
    seed = first(32)
    assert torch.equal(
        make(seed, scale=2)(photos(32), generator(0)).images, make(seed)(photos(32), generator(0)).images
    )


def test_a_craft_may_say_where():
    boxes = torch.tensor([[1, 2, 4, 4], [7, 3, 4, 4], [20, 28, 4, 4]])
    images = photos(32)
    found = make(first(4))(images, generator(0), "train", boxes).images
    for before, after, (x, y, side, _) in zip(images, found, boxes.tolist(), strict=True):
        changed = (before != after).any(0)
        assert changed[y : y + side, x : x + side].all() and int(changed.sum()) == 16
