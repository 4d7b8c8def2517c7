"""Subsets are seeded, nested and stable; every source on the shelf keeps the contract."""

import numpy as np
import pytest

from sslbd_cli import plugin
from sslbd_cli.data.source import Catalogue, Source, SourceWish, _make, _write, choose, numbered
from sslbd_cli.errors import InputError

LABELS = np.array([0] * 10 + [1] * 30 + [2] * 3)
CATALOGUE = Catalogue(classes=("a", "b", "c"), labels=LABELS, images=np.zeros((43, 3, 4, 4), np.uint8))


def rows(**wish: int) -> list[int]:
    return choose(CATALOGUE, SourceWish(**wish)).tolist()  # type: ignore[arg-type]


def test_a_limit_draws_by_the_seed_and_keeps_the_order() -> None:
    found = rows(limit=12, seed=1)
    assert len(set(found)) == 12 and found == sorted(found)
    assert found == rows(limit=12, seed=1) != rows(limit=12, seed=2)
    assert set(rows(limit=5, seed=1)) < set(found)
    assert rows(limit=99) == rows() == list(range(43))


def test_a_limit_is_fair() -> None:
    hits = np.bincount(np.concatenate([rows(limit=10, seed=seed) for seed in range(400)]), minlength=43)
    expected = 400 * 10 / 43
    assert abs(hits - expected).max() < 5 * expected**0.5


def test_parts_of_one_seed_share_nothing_and_make_the_whole() -> None:
    parts = [rows(part=f"{number}/3", seed=2) for number in (1, 2, 3)]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == rows() and all(part == sorted(part) for part in parts)
    assert rows(part="2-3/3", seed=2) == sorted(parts[1] + parts[2]) != rows(part="2-3/3", seed=3)
    assert set(rows(part="1/3", limit=2, seed=2)) < set(parts[0])


def test_a_part_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no image is left of 3"):
        rows(classes=("c",), part="1/5")


@pytest.mark.parametrize("part", ["0/3", "4/3", "3-2/3", "1", "1/0", "1-/3", "x/3", "3-0/3", "1/3 ", "\u0661/3", ""])
def test_parts_that_are_none(part: str) -> None:
    with pytest.raises(InputError, match="expected a part such as 1/5"):
        rows(part=part)


def test_per_class_draws_in_each_class() -> None:
    found = rows(per_class=4, seed=3)
    assert np.bincount(LABELS[found]).tolist() == [4, 4, 3]
    assert found == sorted(found) == rows(per_class=4, seed=3) != rows(per_class=4, seed=4)
    assert set(rows(per_class=2, seed=3)) < set(found)
    assert set(rows(per_class=4, limit=5, seed=3)) < set(found)


def test_numbers_as_classes_are_bounded() -> None:
    assert numbered(np.array([2, 0])) == ("0", "1", "2")
    for bad in (-1, 100_000):
        with pytest.raises(InputError, match=f"label {bad} is not a number"):
            numbered(np.array([0, bad]))


@pytest.mark.parametrize("name", plugin.listing("source"))
def test_every_source_describes_itself_and_refuses_what_it_does_not_take(name: str) -> None:
    source: Source = plugin.parse("source", name)
    info = plugin.listing("source")[name]
    assert plugin.parse("source", str(source)) == source
    assert info.summary.endswith((".", ":")) or len(info.summary) > 20
    assert set(source.needs) <= set(source.takes)
    given = {"SOURCE": {"path": "x"}, "--root": {"root": "x"}, "--count": {"count": 1}, "--split": {"split": "x"}}
    given |= {
        "--download": {"download": True},
        "--skip-corrupt": {"skip_corrupt": True},
        "--no-exif": {"no_exif": True},
        "--max-pixels": {"max_pixels": 9},
        "--captions": {"captions": True},
    }
    assert set(source.takes) <= set(given)
    for option in set(given) - set(source.takes):
        with pytest.raises(InputError, match=f"^{name} takes no {option}; it takes"):
            source(SourceWish(**given[option]))
    for option in source.needs:
        with pytest.raises(InputError, match=f"^{name} needs {option}"):
            source(SourceWish())


def test_chosen_classes_keep_their_order_and_are_numbered_anew():
    labels = np.array([2, 0, 1, 2, 1, 0])
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, 1).repeat(4, 2).repeat(4, 3)
    listed = Catalogue(classes=("cat", "dog", "elk"), labels=labels, images=images)
    made = _make(listed, choose(listed, SourceWish(classes=("elk", "cat"))), SourceWish(classes=("elk", "cat"))).dataset
    assert made.classes == ("cat", "elk")
    assert made.labels.tolist() == [1, 0, 1, 0] and made.ids.tolist() == [0, 1, 3, 5]
    assert made.images[:, 0, 0, 0].tolist() == [0, 1, 3, 5]


def test_a_class_that_is_not_there_is_named_with_a_suggestion():
    listed = Catalogue(classes=("cat", "dog"), labels=np.array([0, 1]), images=np.zeros((2, 3, 4, 4), np.uint8))
    with pytest.raises(InputError, match="no class 'dogs': did you mean 'dog'"):
        choose(listed, SourceWish(classes=("dogs",)))
    bare = Catalogue(classes=(), labels=None, images=np.zeros((2, 3, 4, 4), np.uint8))
    with pytest.raises(InputError, match="--classes needs labels"):
        choose(bare, SourceWish(classes=("dog",)))


def test_written_captions_name_the_class_and_stay_with_their_image() -> None:
    texts = ("a photo of a {}", "one {}")
    found = _write(CATALOGUE, SourceWish(caption=texts, seed=4))
    whole = [f"{text.replace('{}', name)}" for text in texts for name in CATALOGUE.classes]
    assert set(found) == set(whole) and all(
        text.endswith("abc"[label]) for text, label in zip(found, LABELS, strict=True)
    )
    assert (
        found
        == _write(CATALOGUE, SourceWish(caption=texts, seed=4, limit=5))
        != _write(CATALOGUE, SourceWish(caption=texts))
    )


@pytest.mark.parametrize(("wish", "problem"), [
    ({"caption": ("",)}, "the text is empty"), ({"caption": ("a",), "captions": True}, "choose one"),
])  # fmt: skip
def test_captions_that_cannot_be_written(wish, problem) -> None:
    with pytest.raises(InputError, match=problem):
        _write(CATALOGUE, SourceWish(**wish))
