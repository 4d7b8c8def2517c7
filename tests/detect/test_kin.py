"""Kin of a trigger: as strong, another pattern, for every trigger; and what a trigger must do to stand out."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats

from planted import make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.detect import kin, kinship, significance
from sslbd_cli.detect.kin import Suspect
from sslbd_cli.errors import InputError, OutOfTime
from sslbd_cli.triggers._contract import Trigger

SPECS = ("patch:size=4,fill=white", "patch:size=5,where=random", "patch:size=6,fill=chess", "image:file=cat.png")


@dataclass(frozen=True, kw_only=True)
class Foreign(Trigger):
    """A trigger of another package that is no blend of pixels: it swaps the halves of a corner."""

    def stamp(self, x, boxes, gen, phase):
        """Swap."""
        x[:, :, :8, :8] = x[:, :, :8, :8].flip(2).roll(3, 1)
        return x


def suspect_of(trigger, count=8, seed=0):
    clean = make_pictures(count, seed).images
    stamped = trigger(torch.from_numpy(clean), generator(seed, "suspect"), "test")
    return Suspect(trigger, clean, stamped.images.numpy(), stamped.boxes.numpy())


def triggers(folder):
    from PIL import Image

    Image.fromarray(make_pictures(1, 9).images[0].transpose(1, 2, 0)).save(folder / "cat.png")
    for spec in (*plugin.own("trigger"), *SPECS):
        try:
            yield plugin.parse("trigger", spec.replace("cat.png", str(folder / "cat.png")))
        except InputError:  # it needs a file
            continue
    yield Foreign()


def test_every_trigger_has_kin_of_its_strength_with_other_patterns(tmp_path):
    for trigger in triggers(tmp_path):
        suspect, name = suspect_of(trigger, count=4), str(trigger)
        change = (suspect.stamped.astype(float) - suspect.clean) ** 2
        relations = list(islice(kin.kin_of(suspect, 3), 16))
        assert len(relations) == 16, name
        assert len({each.images.tobytes() for each in relations}) > 12, name
        assert len({each.kind for each in relations}) >= 2, name
        for each in relations:
            strength = (((each.images.astype(float) - suspect.clean) ** 2).mean() / change.mean()) ** 0.5
            assert strength == pytest.approx(each.strength, rel=1e-5) and 0.98 <= strength <= 1.25, (name, each.kind)
            assert each.images.dtype == np.uint8 and each.images.shape == suspect.clean.shape
            apart = ((each.images.astype(float) - suspect.stamped) ** 2).mean() / change.mean()
            assert apart > 0.2, f"{each.kind} of {name} is nearly the trigger"
        again = list(islice(kin.kin_of(suspect, 3), 3))
        assert all(np.array_equal(one.images, other.images) for one, other in zip(again, relations, strict=False)), name


@pytest.mark.parametrize("where", ["tl", "random"])
def test_kin_of_a_trigger_with_one_place_lie_apart_from_it_and_others_in_their_boxes(where):
    suspect = suspect_of(plugin.parse("trigger", f"patch:size=4,where={where},margin=0"))
    places = set()
    for each in islice(kin.kin_of(suspect, 0), 16):
        for image, clean, box in zip(each.images, suspect.clean, suspect.boxes, strict=True):
            rows, columns = np.nonzero((image != clean).any(0))
            assert np.ptp(rows) < 6 and np.ptp(columns) < 6
            apart = [max(0, 4 - abs(int(low.min()) - int(at))) for low, at in ((columns, box[0]), (rows, box[1]))]
            places.add((rows.min(), columns.min()))
            assert where == "random" or apart[0] * apart[1] <= kin.OVERLAP * 16
    assert len(places) > 4


def test_likeness_sees_through_shifts_but_not_through_other_colours():
    gen = torch.Generator().manual_seed(0)
    pattern, other = (torch.rand(1, 3, 8, 8, generator=gen) - 0.5 for _ in range(2))
    assert kin.likeness(pattern, pattern.roll((3, 2), (2, 3))) == pytest.approx(1, abs=1e-5)
    assert kin.likeness(pattern, -pattern) < 0.6 and kin.likeness(pattern, other) < 0.6
    white, yellow = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 0.5)
    yellow[:, 2] = -0.5
    assert kin.likeness(white, yellow) == pytest.approx(1 / 3, abs=1e-6)


def likes(suspect, other=0.0):
    """Score the images of the trigger 1, and others by how far they are from it at most `other`."""
    table = {image.tobytes() for image in suspect.stamped}

    def score(images):
        noise = np.random.default_rng(len(images)).random(len(images)) * 0.2
        return np.array([float(image.tobytes() in table) or other for image in images]) + noise

    return score


def test_a_trigger_that_alone_is_seen_stands_out():
    suspect = suspect_of(plugin.parse("trigger", "patch:size=4,fill=white"))
    score = likes(suspect)
    result = kinship.compare(suspect, score(suspect.stamped), score, 0)
    assert (result.n_kin, result.n_beaten) == (kinship.KIN, kinship.KIN) and result.p_value < 1e-6


def test_a_trigger_that_is_seen_as_its_kin_are_ends_at_the_first():
    suspect = suspect_of(plugin.parse("trigger", "blend"))
    asked = []

    def score(images):
        asked.append(len(images))
        return images.astype(float).mean((1, 2, 3)) * 0 + 1

    result = kinship.compare(suspect, np.ones(8), score, 0)
    assert (result.n_kin, result.n_beaten, result.p_value) == (1, 0, 1.0) and asked == [8]
    assert "it stands out from 0 of 1 of its kin" in result.reason("blend")


def test_patterns_of_no_meaning_stand_out_no_more_often_than_the_p_value_says():
    """Each pattern, the trigger or its kin, moves all scores by a normal draw, and each image by another."""
    suspect = suspect_of(plugin.parse("trigger", "noise"), count=3)
    rng, p_values = np.random.default_rng(5), []
    for seed in range(30):
        p_values.append(
            kinship.compare(
                suspect, rng.normal() + rng.normal(size=3), lambda x: rng.normal() + rng.normal(size=len(x)), seed
            ).p_value
        )
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) <= level + 2 * (level * (1 - level) / 30) ** 0.5


def test_a_spent_budget_leaves_the_question_open():
    suspect = suspect_of(plugin.parse("trigger", "blend"))

    def score(images):
        raise OutOfTime("spent")

    result = kinship.compare(suspect, np.ones(8), score, 0)
    assert result.p_value == 1.0 and "the budget ended" in result.reason("blend")


def test_a_value_above_draws_by_hand():
    differences = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])  # means 2, 3, 4: t = 3 / sqrt(1 + 1/3)
    differences[:, 1] -= 2  # both images alike, so that their noise counts nothing
    means = differences.mean(1)
    expected = stats.t.sf(means.mean() / (means.std(ddof=1) * (4 / 3) ** 0.5), 2)
    assert significance.outlying_tail(differences) == pytest.approx(expected)
    noisy = np.array([[5.0, -3.0]] * 4)  # equal draws, unequal images: the images' noise is the spread
    assert significance.outlying_tail(noisy) == pytest.approx(stats.t.sf(1 / (16 * 5 / 4) ** 0.5, 3))
    assert significance.outlying_tail(np.zeros((4, 3))) == 1.0 and significance.outlying_tail(np.ones((4, 3))) == 0.0
