import dataclasses

import numpy as np
import pytest
import torch

from micro import make_dataset
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.detect import encoder_verdict
from sslbd_cli.detect.contract import FoundTrigger, Opinion, SearchOutcome
from sslbd_cli.detect.encoder_verdict import stand
from sslbd_cli.errors import InputError
from sslbd_cli.triggers import _found
from sslbd_cli.triggers._found import Witness


def opinion(statistic: float, threshold: float | None = 1.0, doubt: str = "") -> Opinion:
    return Opinion(statistic, threshold, "nothing in particular", doubt=doubt)


def test_without_clean_encoders_its_own_rule_decides():
    assert stand(opinion(1.5), [], 0.05).verdict() == ("found", "")
    assert stand(opinion(1.0), [], 0.05).verdict() == ("nothing found", "")
    assert stand(opinion(1.5), [], 0.05).p_value is None


def test_a_single_clean_encoder_beyond_the_threshold_takes_the_answer_back():
    standing = stand(opinion(1.5), [1.2], 0.05)
    assert standing.verdict()[0] == "inconclusive" and "clean encoder" in standing.verdict()[1]
    assert stand(opinion(1.5), [0.9], 0.05).verdict() == ("found", "")


def test_a_pool_of_clean_encoders_sets_the_scale_whatever_the_rule_says():
    pool = [0.1, 0.2, 0.3, 0.4]
    above, among = stand(opinion(0.5), pool, 0.05), stand(opinion(0.4), pool, 0.05)
    assert above.p_value == pytest.approx(1 / 5) and above.false_alarms == pytest.approx(1 / 5)
    assert above.verdict()[0] == "found"
    assert among.p_value == pytest.approx(2 / 5)
    assert among.verdict()[0] == "nothing found"


def test_a_large_pool_allows_alpha():
    pool = list(np.linspace(0, 1, 39))
    assert stand(opinion(0.999), pool, 0.05).verdict()[0] == "found"  # one above of 39: 2 of 40
    assert stand(opinion(0.97), pool, 0.05).verdict()[0] == "nothing found"  # two above: 3 of 40


def test_leave_one_out_over_clean_encoders_gives_at_most_the_false_alarms_said():
    values = np.random.default_rng(0).normal(size=9)
    alarms = [stand(opinion(v), list(np.delete(values, i)), 0.05).verdict()[0] == "found" for i, v in enumerate(values)]
    assert sum(alarms) == 1  # the largest of nine


def test_clean_encoders_that_a_learner_held_out_are_a_pool_too():
    own_pool = dataclasses.replace(opinion(0.5), clean_statistics=np.array([0.1, 0.2, 0.3, 0.4]))
    assert stand(own_pool, [], 0.05).p_value == pytest.approx(1 / 5)
    assert stand(own_pool, [0.6], 0.05).p_value == pytest.approx(2 / 6)


def test_a_doubtful_search_says_so_whatever_came_out():
    assert stand(opinion(9.0, doubt="never converged"), [], 0.05).verdict() == ("inconclusive", "never converged")


def test_the_part_that_stands_out_among_clean_encoders_decides_and_has_the_witness():
    """The large part is as usual, the small one is not: statistics on scales of their own are no scale for all."""
    pool = [{"patch": 5.0 + i / 10, "noise": 0.1 + i / 1000} for i in range(5)]
    witness = Witness(torch.ones(1, 4, 4), torch.zeros(3, 4, 4))
    searches = {name: SearchOutcome(statistic, FoundTrigger(witness, success)) for name, statistic, success in
                (("patch", 5.2, 0.2), ("noise", 0.2, 0.9))}  # fmt: skip
    mine = Opinion(5.2, None, "", trigger=searches["patch"].trigger, searches=searches)
    standing = stand(mine, [each["patch"] for each in pool], 0.05, pool)
    assert standing.verdict()[0] == "found" and standing.decisive == "noise" and standing.opinion.trigger.success == 0.9
    usual = stand(
        Opinion(5.2, None, "", searches={"patch": SearchOutcome(5.2), "noise": SearchOutcome(0.1)}),
        [5.0] * 5,
        0.05,
        pool,
    )
    assert usual.verdict()[0] == "nothing found"
    with pytest.raises(InputError, match="every search"):
        stand(mine, [5.0] * 4, 0.05, [{"patch": 5.0}] * 4)


def test_over_parts_too_one_of_the_clean_encoders_is_the_largest():
    parts = [dict(zip("abc", row, strict=True)) for row in np.random.default_rng(0).normal(size=(9, 3))]
    alarms = 0
    for i, own in enumerate(parts):
        others = parts[:i] + parts[i + 1 :]
        mine = Opinion(0.0, None, "", searches={name: SearchOutcome(statistic) for name, statistic in own.items()})
        alarms += stand(mine, [0.0] * 8, 0.05, others).verdict()[0] == "found"
    assert alarms == 1


def test_nothing_decides_without_threshold_and_without_pool():
    verdict, why = stand(opinion(1.0, threshold=None), [0.1, 0.2, 0.3], 0.05).verdict()
    assert verdict == "inconclusive" and "4 clean encoders" in why
    assert stand(opinion(1.0, threshold=None), [0.1, 0.2, 0.3, 0.4], 0.05).verdict()[0] == "found"


def test_a_witness_pastes_and_adds_on_both_pixel_types():
    mask = torch.zeros(1, 4, 4)
    mask[:, 2:, 2:] = 1
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 4)
    patch = Witness(1 - mask, mask * red)
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stamped = patch.stamp(images)
    assert torch.equal(stamped[:, :, :2], images[:, :, :2])
    assert (stamped[:, 0, 2:, 2:] == 255).all() and (stamped[:, 1:, 2:, 2:] == 0).all()
    assert patch.area == pytest.approx(0.25)
    light = Witness(torch.ones(1, 4, 4), torch.full((3, 4, 4), 10 / 255))
    assert torch.equal(light.stamp(images), (images.int() + 10).clamp(max=255).to(torch.uint8))
    assert torch.allclose(light.stamp(images / 255), (light.stamp(images) / 255), atol=1e-6)


def make_report(**results: object) -> Report:
    usual = {"flags": "encoder", "method": "m", "data": {"sha256": "x"}, "n_images": 3, "statistic": 0.5}
    return Report(command="detect", results=usual | results, data={})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"flags": "samples"}, "does not judge an encoder"),
        ({"method": "other"}, "a report of other"),
        ({"n_images": 4}, "other images"),
        ({"statistic": None}, "without a statistic"),
        ({"statistic": True}, "without a statistic"),
        ({"parts": {"patch": float("nan")}}, "without a statistic"),
    ],
)
def test_a_report_that_is_no_scale_is_refused(change, word):
    data = make_dataset()
    mine = make_report(data={"sha256": data.sha256})
    assert encoder_verdict.statistic_of(mine, "m", data, 3) == (0.5, {})
    with pytest.raises(InputError, match=word):
        encoder_verdict.statistic_of(make_report(**({"data": {"sha256": data.sha256}} | change)), "m", data, 3)


@pytest.mark.parametrize("part", [np.zeros((1, 4), np.float32), np.zeros((1, 4, 4)), np.full((1, 4, 4), np.nan, "f4")])
def test_a_damaged_witness_is_refused(part):
    report = Report(command="detect", results={}, data={"witness/keep": part, "witness/add": np.zeros((3, 4, 4), "f4")})
    with pytest.raises(InputError, match="damaged"):
        _found.witness_of(report, "--report")
