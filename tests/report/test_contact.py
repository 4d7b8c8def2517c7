"""The contact sheet: pixels that a person judges, outlines around windows and never over them."""

import io

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.report import contact, figures
from sslbd_cli.report.contact import Suspects

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 3, 32, 32), np.uint8)
VERMILION, BLUE = (213, 94, 0), (0, 114, 178)
WINDOWS = np.tile(np.array([[10, 4, 8, 6]], np.int32), (7, 1))
FOUND = {
    "found/images": IMAGES,
    "found/windows": WINDOWS,
    "found/scores": np.linspace(2, 1, 7),
    "found/poisoned": np.arange(7) < 5,
    "found/patches": IMAGES[:, :, 4:10, 10:16],
    "found/trigger": IMAGES[:1, :, 4:10, 10:16],
}


def sheet(**arrays):
    data = {f"found/{name}": array for name, array in arrays.items() if array is not None}
    found = figures.pictures(Report(command="detect", results={"flags": "samples"}, data=data))
    assert [picture.name for picture in found] in ([], ["found"])
    return found[0] if found else None


def whole(**arrays):
    return sheet(**({name[6:]: array for name, array in FOUND.items()} | arrays))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has(drawn, wanted):
    """Tell whether a picture holds another one, pixel by pixel."""
    views = np.lib.stride_tricks.sliding_window_view(drawn, wanted.shape)[:, :, 0]
    starts = np.argwhere((views[:, :, 0, 0] == wanted[0, 0]).all(-1))
    return any((views[y, x] == wanted).all() for y, x in starts)


def enlarged(image, factor):
    return np.kron(image.transpose(1, 2, 0), np.ones((factor, factor, 1), np.uint8))


def share_of(drawn, colour):
    return (drawn == np.array(colour)).all(-1).mean()


def test_windows_are_outlined_and_what_they_hold_is_untouched():
    drawn, plain = pixels(contact.contact(Suspects(IMAGES, WINDOWS))), pixels(contact.contact(Suspects(IMAGES)))
    factor = contact.TILE // 32
    for image in IMAGES:
        assert has(drawn, enlarged(image[:, 4:10, 10:18], factor))
        assert has(plain, enlarged(image, factor))
        assert not has(drawn, enlarged(image, factor))
    # three rings of pixels per window, and none of the colour without windows
    ring = 2 * 3 * (8 + 6) * factor
    assert share_of(drawn, VERMILION) * drawn[:, :, 0].size > 7 * ring
    assert share_of(plain, VERMILION) == 0


def test_an_outline_at_the_border_is_whole():
    corner = np.tile(np.array([[0, 0, 8, 8]]), (7, 1))
    middle = corner + np.array([12, 12, 0, 0])
    counts = [share_of(pixels(contact.contact(Suspects(IMAGES, each))), VERMILION) for each in (corner, middle)]
    assert counts[0] == counts[1] > 0


def test_patches_and_the_trigger_are_enlarged_beside_it():
    drawn = pixels(whole().png)
    patch = IMAGES[:, :, 4:10, 10:16]
    assert has(drawn, enlarged(patch[0], contact.TILE // 6))
    assert all(has(drawn, enlarged(each, contact.PATCH // 6)) for each in patch)


def test_truth_is_a_word_and_a_colour_only_where_it_is_known():
    known, unknown = whole(), whole(poisoned=None)
    assert "5 of them are poisoned" in known.caption
    assert "poisoned" not in unknown.caption
    assert share_of(pixels(known.png), BLUE) > 0  # the word clean
    assert share_of(pixels(unknown.png), BLUE) == 0
    captions = [contact._captions(Suspects(IMAGES, poisoned=np.arange(7) < 5), row)[1][0] for row in (0, 6)]
    assert captions == ["● poisoned", "○ clean"]


def test_a_bound_is_not_said_to_be_blind():
    report = Report(command="detect", results={"flags": "samples", "sees_truth": True}, data=FOUND)
    assert "never saw" not in figures.pictures(report)[0].caption
    assert "never saw" in whole().caption


def test_equal_input_gives_equal_bytes_and_at_most_twenty_are_shown():
    assert whole().png == whole().png
    many = {name: np.concatenate([array] * 4) for name, array in FOUND.items()}
    first = {name: array[:20] for name, array in many.items()}
    shown = [figures.pictures(Report(command="detect", results={}, data=data))[0] for data in (many, first)]
    assert shown[0].png == shown[1].png
    assert "The 20 training images" in shown[0].caption


def test_any_part_may_be_missing():
    assert sheet() is None
    assert sheet(windows=WINDOWS, scores=np.ones(7)) is None
    for name in FOUND:
        assert whole(**{name[6:]: None}) is not None
        alone = sheet(**{name[6:]: FOUND[name]})
        assert (alone is not None) == (name in ("found/images", "found/patches", "found/trigger"))


EXTREME = [[-5, -5, 20, 20], [0, 0, 32, 32], [30, 31, 2**31 - 31, 9], [-(2**31), 0, 5, 5], [0] * 4, [3, 3, -4, 9]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": np.array([*EXTREME, [31, 31, 1, 1]], np.int32)},
        {"windows": np.full((7, 4), 2**64 - 1, np.uint64)},
        {"windows": np.full((7, 4), -(2**63), np.int64)},
        {"windows": WINDOWS.astype(float) * np.nan},
        {"windows": WINDOWS[:3]},
        {"windows": WINDOWS[:, :2]},
        {"scores": np.array([np.nan, np.inf, -np.inf, -1.7e308, 1e-320, 0, -0.0])},
        {"scores": np.ones((7, 2)), "poisoned": np.ones((7, 1))},
        {"poisoned": np.ones(3, bool), "scores": np.ones(6)},
        {"images": IMAGES.astype(float)},
        {"images": IMAGES[:0], "patches": IMAGES[0]},
        {"images": IMAGES[:, :2], "trigger": IMAGES[:, :, :0]},
        {"images": np.zeros((7, 3, 1, 4000), np.uint8)},
        {"images": np.zeros((7, 1, 700, 2), np.uint8), "patches": np.zeros((7, 3, 300, 300), np.uint8)},
        {"trigger": np.zeros((9, 1, 1, 1), np.uint8), "patches": np.zeros((7, 3, 1, 500), np.uint8)},
    ],
)
def test_arrays_that_are_not_what_they_say_never_fail(wrong):
    assert pixels(whole(**wrong).png).shape[1] == contact.TILE * 5 + 16 * 5 + 28


def test_windows_that_point_nowhere_are_not_promised():
    assert "outlined" in whole().caption
    assert "outlined" not in whole(windows=WINDOWS * 0).caption
    assert "outlined" not in whole(windows=WINDOWS[:3]).caption
