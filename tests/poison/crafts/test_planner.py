"""The planner: the published geometry's numbers, an independent count, and a choice that is the best."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from sslbd_cli.core.augment import Recipe
from sslbd_cli.errors import InputError
from sslbd_cli.poison.canvas import CanvasLayout, Scene, scene, side_by_side
from sslbd_cli.poison.crafts import _planner

TILE, PATCH = 224, torch.tensor([[50, 50]])


def native(wide: float, place: str = "center", right: bool = False) -> CanvasLayout:
    """Noisy Alignment's canvas as the paper has it, not brought to a square."""
    canvas = Scene((TILE, round(wide * TILE)), split=TILE, top=0, rows=TILE)
    return side_by_side(canvas, PATCH, torch.tensor([right]), place)


# Layouts of 224-pixel tiles with a 50-pixel trigger, from a Monte-Carlo in numpy that shares nothing with ours.
@pytest.mark.parametrize(
    ("wide", "place", "small", "large"),
    [
        (2.0, "center", (0.106, 0.045), (0.090, 0.031)),
        (2.0, "released", (0.119, 0.045), (0.101, 0.030)),
        (1.6, "center", (0.121, 0.007), (0.112, 0.001)),
        (2.2, "center", (0.095, 0.061), (0.076, 0.042)),
        (2.5, "center", (0.077, 0.063), (0.057, 0.042)),
        (3.0, "center", (0.053, 0.046), (0.032, 0.021)),
    ],
)
def test_chances_of_noisy_alignments_canvases(wide, place, small, large):
    layout = native(wide, place, right=place == "released")  # the table's figure is the shadow's on the left
    for least, (weak, strict) in ((0.08, small), (0.2, large)):
        chances = _planner.chances(layout, _planner.views(layout.shape, Recipe(scale=(least, 1.0)), pairs=200_000))
        assert chances.weak == pytest.approx(weak, abs=0.006) and chances.strict == pytest.approx(strict, abs=0.006)


def test_chances_are_those_of_torchvisions_crops_counted_one_by_one():
    layout = side_by_side(scene((32, 32), 1.6, "squeeze"), torch.tensor([[5, 5]]), torch.tensor([False]), "center")
    (rx, ry, rw, rh), (tx, ty, tw, th) = layout.reference[0].tolist(), layout.trigger[0].tolist()
    torch.manual_seed(0)
    image, hits = torch.zeros(3, 32, 32), []
    for _ in range(2500):
        crops = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2)]
        holds = [x <= tx and tx + tw <= x + w and y <= ty and ty + th <= y + h for y, x, h, w in crops]
        inside = [rx <= x and x + w <= rx + rw and ry <= y and y + h <= ry + rh for y, x, h, w in crops]
        hits.append((holds[0] and inside[1]) or (holds[1] and inside[0]))
    found = _planner.chances(layout, _planner.views((32, 32), Recipe(scale=(0.08, 1.0))))
    assert found.weak == pytest.approx(np.mean(hits), abs=4 * np.sqrt(0.12 * 0.88 / 2500))


def test_strict_asks_more_than_weak_and_a_square_less_than_the_canvas():
    recipe = Recipe(scale=(0.2, 1.0))
    square = side_by_side(scene((224, 224), 2.0, "squeeze"), PATCH, torch.tensor([False]), "center")
    padded = side_by_side(scene((224, 224), 2.0, "pad"), PATCH, torch.tensor([False]), "center")
    canvas, squeezed, boxed = (
        _planner.chances(x, _planner.views(x.shape, recipe)) for x in (native(2.0), square, padded)
    )
    assert canvas.strict < canvas.weak
    assert canvas.weak > 5 * squeezed.weak > 25 * boxed.weak > 0


# What the documentation of noisy-alignment and of core/canvas.py says of 32-pixel images and a 5-pixel trigger.
@pytest.mark.parametrize(
    ("fit", "least", "weak", "close"),
    [
        ("squeeze", 0.2, 0.015, 0.0015),
        ("squeeze", 0.08, 0.055, 0.004),
        ("pad", 0.2, 0.0006, 0.0002),
        ("pad", 0.08, 0.011, 0.001),
    ],
)
def test_chances_on_small_squares(fit, least, weak, close):
    layout = side_by_side(scene((32, 32), 2.0, fit), torch.tensor([[5, 5]]), torch.tensor([False]), "center")
    pair = _planner.views(layout.shape, Recipe(scale=(least, 1.0)), pairs=200_000)
    assert _planner.chances(layout, pair).weak == pytest.approx(weak, abs=close)


@pytest.mark.parametrize(("least", "weak", "strict"), [(0.2, 0.16, 0.0002), (0.08, 0.17, 0.002)])
def test_plans_for_small_squares(least, weak, strict):
    recipe = Recipe(scale=(least, 1.0))
    likely = _planner.plan((32, 32), (5, 5), recipe, fit="squeeze", place="center", event="weak")
    apart = _planner.plan((32, 32), (5, 5), recipe, fit="squeeze", place="center", event="strict")
    assert likely.wide == 1.3 and likely.chances.weak == pytest.approx(weak, abs=0.006)
    assert apart.wide in (2.0, 2.1) and 0.5 * strict < apart.chances.strict < strict


@pytest.mark.parametrize("event", ["weak", "strict"])
def test_the_plan_is_the_best_of_all_widths(event):
    recipe = Recipe(scale=(0.08, 1.0))
    chosen = _planner.plan((32, 32), (6, 6), recipe, fit="squeeze", place="center", event=event)
    pair = _planner.views((32, 32), recipe)
    for wide in (1.3, 1.5, 2.0, 2.5, 3.0):
        layout = side_by_side(scene((32, 32), wide, "squeeze"), torch.tensor([[6, 6]]), torch.tensor([False]), "center")
        assert getattr(_planner.chances(layout, pair), event) <= getattr(chosen.chances, event)
    assert chosen.wide < 1.6 if event == "weak" else 2 <= chosen.wide <= 2.5


def test_the_trigger_always_fits_the_plan():
    chosen = _planner.plan((32, 32), (12, 12), Recipe(scale=(0.2, 1.0)), fit="squeeze", place="center", event="weak")
    assert 32 - round(32 / chosen.wide) >= 12


@pytest.mark.parametrize(("patch", "least"), [((32, 32), 0.2), ((5, 5), 0.95)])
def test_what_no_canvas_can_give_is_refused(patch, least):
    with pytest.raises(InputError, match="no canvas of 32x32 pixels gives the weak event"):
        _planner.plan((32, 32), patch, Recipe(scale=(least, 1.0)), fit="squeeze", place="center", event="weak")
