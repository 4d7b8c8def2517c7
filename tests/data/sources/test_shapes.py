"""The `shapes` dataset: same seed same bytes, a longer set starts with the shorter, and colours tell no class."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sslbd_cli.artefacts import captions
from sslbd_cli.data.source import SourceWish
from sslbd_cli.data.sources.shapes import BLOCK, CLASSES, FIGURES, SENTENCES, TEXTURES, describe, draw
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import parse


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (*draw(1000, 32, 1), *draw(1000, 32, 2))


@pytest.mark.parametrize("size", [16, 32, 96])
def test_shapes_and_types(size: int) -> None:
    images, labels = draw(12, size, 0)
    assert images.shape == (12, 3, size, size) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert labels.shape == (12,) and labels.dtype == np.int64
    assert images.std((1, 2, 3)).min() > 10  # no blank image


def test_none_asked_none_given() -> None:
    images, labels = draw(0, 32, 0)
    assert images.shape == (0, 3, 32, 32) and labels.shape == (0,)


def test_same_seed_same_bytes() -> None:
    first, second = draw(60, 32, 7), draw(60, 32, 7)
    assert hashlib.sha256(first[0].tobytes()).digest() == hashlib.sha256(second[0].tobytes()).digest()
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("seed", [0, 8, -1, 2**40])
def test_other_seed_other_images(seed: int) -> None:
    first, second = draw(20, 32, 7), draw(20, 32, seed)
    assert (first[0] != second[0]).any((1, 2, 3)).all() and not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 3])
def test_longer_set_starts_with_shorter(count: int) -> None:
    short, long = draw(count, 16, 3), draw(2 * BLOCK + 7, 16, 3)
    assert np.array_equal(short[0], long[0][:count]) and np.array_equal(short[1], long[1][:count])


def test_no_image_is_drawn_twice() -> None:
    images, _ = draw(4 * BLOCK, 16, 0)
    assert len({image.tobytes() for image in images}) == len(images)


def test_every_ten_images_hold_each_class_once() -> None:
    _, labels = draw(205, 16, 0)
    assert (np.sort(labels[:200].reshape(-1, 10), 1) == np.arange(10)).all()
    assert not np.array_equal(labels[:10], labels[10:20])
    assert len(set(CLASSES)) == 10


def test_other_size_shows_same_scene() -> None:
    small, large = draw(20, 32, 0)[0].astype(float), draw(20, 96, 0)[0].astype(float)
    shrunk = large.reshape(20, 3, 32, 3, 32, 3).mean((3, 5))
    assert np.abs(shrunk - small).mean() < 8  # levels: grain (about 4) and edges


def test_figures_cover_equal_areas_and_textures_are_half_and_half() -> None:
    axis = np.linspace(-2, 2, 401, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for name in CLASSES:
        texture, figure = name.split("-")
        inside = FIGURES[figure](u, v) > 0
        assert inside.mean() * 16 / np.pi == pytest.approx(1, abs=0.02), name
        shares = [
            (TEXTURES[texture](k * u[inside] + a, k * v[inside] + b) > 0).mean()
            for k in (1.1, 1.35, 1.6)
            for a in (-0.2, 0, 0.2)
            for b in (-0.2, 0, 0.2)
        ]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.06), name


def colours(images: np.ndarray) -> np.ndarray:
    """Describe each image by its colours alone: mean and standard deviation per channel, and histograms."""
    flat = images.reshape(len(images), 3, -1)
    fine = [(flat // 32 == level).mean(2) for level in range(8)]
    joint = (flat // 64 * np.array([16, 4, 1])[:, None]).sum(1)
    return np.concatenate([flat.mean(2), flat.std(2), *fine, *[(joint == k).mean(1)[:, None] for k in range(64)]], 1)


def probe_colours(sets: tuple[np.ndarray, ...], leak: int = 0) -> float:
    """Return the test accuracy of a linear probe on colours, each class `leak` levels brighter than the last."""
    (images, labels), (test_images, test_labels) = sets[:2], sets[2:]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    probe.fit(colours(images // 2 + leak * labels[:, None, None, None]), labels)
    return float(probe.score(colours(test_images // 2 + leak * test_labels[:, None, None, None]), test_labels))


def test_colours_tell_no_class(sets: tuple[np.ndarray, ...]) -> None:
    """Chance is 0.1; on 1,000 test images its standard error is 0.0095, so 0.15 is five of them above chance."""
    assert probe_colours(sets) < 0.15
    assert probe_colours(sets, leak=6) > 0.2  # the probe would have seen it


def test_tones_differ_in_gray(sets: tuple[np.ndarray, ...]) -> None:
    """SimCLR grays a fifth of the views: what the figure adds to the luminance's spread must survive that."""
    gray = np.tensordot(sets[0], [0.299, 0.587, 0.114], (1, 0))
    assert np.quantile(gray.std((1, 2)), 0.01) > 15  # levels


def test_no_saturated_patches(sets: tuple[np.ndarray, ...]) -> None:
    """A trigger of random saturated blocks stands out: chroma (largest minus smallest channel) stays below half."""
    chroma = np.ptp(sets[0].astype(int), axis=1)
    assert np.quantile(chroma, 0.999) < 128


def test_source_fills_in_what_was_not_asked() -> None:
    made = parse("source", "shapes")(SourceWish(count=30, seed=5))
    images, labels = draw(30, 32, 5)
    assert np.array_equal(made.dataset.images, images) and np.array_equal(made.dataset.labels, labels)
    assert made.dataset.classes == CLASSES
    assert parse("source", "shapes")(SourceWish(count=10, size=48)).dataset.images.shape == (10, 3, 48, 48)


@pytest.mark.parametrize("size", [15, 257])
def test_source_refuses_sizes_out_of_bounds(size: int) -> None:
    with pytest.raises(InputError, match=f"shapes: --size {size}: expected 16 to 256"):
        parse("source", "shapes")(SourceWish(count=10, size=size))


# --- captions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described() -> tuple[np.ndarray, np.ndarray, list[str]]:
    return describe(300, 64, 4)


def test_captions_do_not_move_a_pixel(described) -> None:
    images, labels = draw(300, 64, 4)
    assert np.array_equal(described[0], images) and np.array_equal(described[1], labels)


def test_captions_are_sentences_on_the_figure_and_its_texture(described) -> None:
    for label, text in zip(*described[1:], strict=True):
        words = text.replace(",", "").split()
        assert set(CLASSES[label].split("-")) < set(words) and len(words) >= 5, text
        assert CLASSES[label] not in text and text == " ".join(text.split())
    assert len(set(described[2])) > 150 and len(SENTENCES) >= 4


def test_captions_come_from_the_seed_and_start_the_longer_set_at_any_size(described) -> None:
    assert describe(130, 16, 4)[2] == described[2][:130]
    assert describe(BLOCK, 16, 5)[2] != described[2][:BLOCK]


def test_captions_say_what_is_seen(described) -> None:
    """Backgrounds are dark or bright in the corners, and figures off the middle where the sentence says."""
    images, _, texts = described
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean((1, 2))
    means = {word: corners[[word in text for text in texts]].mean() for word in ("dark", "grey", "bright")}
    assert means["dark"] + 20 < means["grey"] < means["bright"] - 20
    detail = np.abs(np.diff(images.astype(int), axis=3)).mean(1)  # N,64,63: textures have edges, backgrounds few
    side = detail[:, :, 32:].mean((1, 2)) / detail.mean((1, 2))
    left, right = (side[[f"towards the {word}" in text for text in texts]].mean() for word in ("left", "right"))
    assert left < 0.95 < 1.05 < right


def test_source_writes_captions_where_asked() -> None:
    made = parse("source", "shapes")(SourceWish(count=40, size=16, seed=5, captions=True, limit=7)).dataset
    assert made.captions is not None and made.ids is not None
    texts = describe(40, 16, 5)[2]
    assert captions.decode(made.captions) == [texts[row] for row in made.ids]
    assert parse("source", "shapes")(SourceWish(count=10, size=16)).dataset.captions is None
