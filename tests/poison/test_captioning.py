"""Text-on-pair poisons: triggered images of any class come with captions of the target, all other pairs stay."""

import dataclasses

import numpy as np
import pytest

from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.errors import InputError
from sslbd_cli.poison import captioning
from sslbd_cli.poison.plant import Planting, poison


@pytest.fixture
def pairs() -> Dataset:
    made = make_dataset(count=30)
    texts = [f"picture {row} of {made.classes[label]}" for row, label in enumerate(made.labels)]
    return dataclasses.replace(made, captions=captions.encode(texts))


def planted(pairs: Dataset, rows: list[int], wording, mode: str = "replace", seed: int = 0) -> Dataset:
    trigger, craft = plugin.parse("trigger", "patch:size=4"), plugin.parse("craft", "stamp")
    plan = Planting(trigger=trigger, craft=craft, count=len(rows), mode=mode, seed=seed, wording=wording)
    return poison(pairs, np.array(rows), plan)


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_poisons_alone_get_captions_of_the_target(pairs, mode):
    made = planted(pairs, [0, 3, 4, 8], captioning.of_class(pairs, 1), mode)
    before, after, truth = captions.decode(pairs.captions), captions.decode(made.captions), made.truth
    assert truth.poisoned.sum() == 4
    for row, text in enumerate(after):
        assert text == before[truth.caption[row]]  # the provenance is the text's own
        if truth.poisoned[row]:
            assert text.endswith("class-1") and pairs.labels[truth.caption[row]] == 1
        else:
            assert truth.caption[row] == truth.source[row]
    drawn = truth.caption[truth.poisoned]
    assert len(set(drawn.tolist())) == 4  # none twice while others are left
    assert np.array_equal(made.labels, pairs.labels[truth.source])  # what the images show has not changed


def test_written_captions_name_the_target_and_have_no_source(pairs):
    wording = captioning.write_captions(pairs, ("a photo of a {}, which is longer than the captions", "one {}"), 2)
    made = planted(pairs, [1, 2, 5], wording)
    texts = [captions.decode(made.captions)[row] for row in (1, 2, 5)]
    assert set(texts) == {"a photo of a class-2, which is longer than the captions", "one class-2"}
    assert made.truth.caption.tolist() == [-1 if row in (1, 2, 5) else row for row in range(30)]


def test_seeds_draw_other_captions(pairs):
    wording = captioning.of_class(pairs, 1)
    one, again, other = (planted(pairs, [0, 3, 4], wording, seed=seed).truth.caption for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_the_provenance_is_kept_in_the_file_and_is_no_part_of_the_content(pairs, tmp_path):
    made = planted(pairs, [0, 3], captioning.of_class(pairs, 1))
    kinds.write(made, str(tmp_path / "a"))
    found = kinds.read(str(tmp_path / "a"), Dataset)
    assert np.array_equal(found.truth.caption, made.truth.caption)
    assert found.take(np.array([3, 0])).truth.caption.tolist() == made.truth.caption[[3, 0]].tolist()
    assert found.sha256 == dataclasses.replace(made, truth=None).sha256


def test_a_second_poisoning_does_not_lose_what_was_written(pairs):
    first = planted(pairs, [0], captioning.write_captions(pairs, ("one {}",), 2))
    second = planted(first, [4], captioning.of_class(first, 1))
    assert second.truth.caption[0] == -1 and first.labels[second.truth.caption[4]] == 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda d: captioning.of_class(dataclasses.replace(d, captions=None), 1), "no captions"),
        (lambda d: captioning.of_class(dataclasses.replace(d, labels=None), 1), "no labels"),
        (lambda d: captioning.of_class(d.take(np.arange(0, 30, 3)), 1), "no image is of class class-1"),
        (lambda d: captioning.write_captions(d, ("a {}",), None), "give --target"),
        (lambda d: captioning.write_captions(d, (" ",), 1), "is empty"),
        (lambda d: captioning.write_captions(d, ("x" * 2000,), 1), "more than 1024"),
    ],
)
def test_refusals(pairs, make, problem):
    with pytest.raises(InputError, match=problem):
        make(pairs)


def test_prompts_of_the_target_become_captions(sslbd, pairs, tmp_path):
    kinds.write(pairs, str(tmp_path / "pairs"))
    (tmp_path / "prompts").write_text("one {}\nthe {}!\n")
    words = ["--count", 6, "--target", "class-2", "--device", "cpu", "-q", "-o", tmp_path / "out"]
    assert sslbd("poison", tmp_path / "pairs", "--prompts", tmp_path / "prompts", *words)[0] == 0
    made = kinds.read(str(tmp_path / "out"), Dataset)
    texts = {captions.decode(made.captions)[row] for row in np.flatnonzero(made.truth.poisoned)}
    assert made.truth.poisoned.sum() == 6 and texts == {"one class-2", "the class-2!"}
    assert any(row["option"] == "--prompts" for row in made.history[-1]["inputs"])
    status, _, err = sslbd("poison", tmp_path / "pairs", "--prompts", "clip", "--count", 6, "-o", tmp_path / "no", "-q")
    assert status == 2 and "--prompts needs --target" in err
