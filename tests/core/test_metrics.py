"""Every number we print, on confusion matrices made by hand and against values from elsewhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslbd_cli.core import metrics
from sslbd_cli.detect import significance

# rows: true class, columns: answer
CLEAN = np.array([[8, 1, 1], [0, 9, 1], [2, 0, 8]])
TRIGGERED = np.array([[1, 0, 9], [0, 2, 8], [0, 1, 9]])


def test_confusion_counts_truth_in_rows_and_answers_in_columns():
    truth, guess = np.array([0, 0, 1, 2, 2]), np.array([0, 2, 1, 0, 0])
    assert metrics.confusion(truth, guess, 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0] * 4]


def test_accuracy():
    assert metrics.accuracy(CLEAN) == (25, 30)
    assert metrics.accuracy(TRIGGERED) == (12, 30)


def test_false_positives_leave_the_target_class_out():
    assert metrics.false_positives(CLEAN, 2) == (2, 20)
    assert metrics.false_positives(TRIGGERED, 2) == (17, 20)
    assert metrics.false_positives(TRIGGERED, 0) == (0, 20)


def test_nfp_is_relative_to_the_most_frequent_wrong_answer():
    assert metrics.nfp(TRIGGERED, 2) == 1
    assert metrics.nfp(TRIGGERED, 1) == 1 / 17
    assert metrics.nfp(CLEAN, 1) == 1 / 2
    assert metrics.nfp(np.diag([3, 4]), 0) == 0


def test_the_metrics_of_an_attack():
    found = metrics.attack([CLEAN], [TRIGGERED], 2)
    assert found["asr"]["value"] == 17 / 20 and found["asr"]["n"] == 20
    assert found["asr_all"]["value"] == 26 / 30 and found["asr_all"]["n"] == 30
    assert found["patched_accuracy"]["value"] == 12 / 30
    assert (found["fp_clean"], found["fp_triggered"], found["nfp"]) == (2, 17, 1)
    assert (found["asr"]["low"], found["asr"]["high"]) == metrics.wilson(17, 20)


def test_several_seeds_give_mean_and_spread():
    found = metrics.share([(8, 10), (9, 10), (10, 10)])
    assert found["value"] == pytest.approx(0.9) and found["sd"] == pytest.approx(0.1)
    assert (found["n"], found["seeds"]) == (10, 3)
    assert (found["low"], found["high"]) == pytest.approx(metrics.wilson(9, 10))
    assert metrics.share([(8, 10)])["sd"] is None


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_wilson(hits, total, low, high):
    assert metrics.wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_no_trials_say_nothing():
    assert metrics.wilson(0, 0) == (0, 1)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_in_bounds(trial):
    hits, total = trial
    low, high = metrics.wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1


# --- detection ----------------------------------------------------------------------------------------------------

SCORES = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.2])
POSITIVE = np.array([False, False, True, True, True, False])


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(SCORES[POSITIVE], SCORES[~POSITIVE])]
    assert metrics.auroc(SCORES, POSITIVE)["value"] == pytest.approx(np.mean(pairs)) == pytest.approx(8 / 9)
    assert metrics.auroc(np.ones(6), POSITIVE)["value"] == 0.5


def test_the_interval_of_auroc_is_hanleys_and_mcneils():
    """Their 1982 example: an area of 0.893 with 51 abnormal and 58 normal images has a standard error of 0.032."""
    scores, positive = np.arange(109.0), np.arange(109) >= 58
    scores[58:78] = 58 - 16 - 0.5  # 20 of the 51 lie behind 16 normal images each: 320 of 2958 pairs are wrong
    found = metrics.auroc(scores, positive)
    assert found["value"] == pytest.approx(0.893, abs=0.002)
    assert found["value"] - found["low"] == pytest.approx(1.96 * 0.032, abs=0.0015)
    assert found["high"] - found["value"] == pytest.approx(1.96 * 0.032, abs=0.0015)


def test_a_perfect_ranking_has_a_sharp_interval():
    assert metrics.auroc(np.arange(6.0), np.arange(6) > 2) == {"value": 1, "low": 1, "high": 1}


def test_the_chance_of_a_ranking_is_its_share_of_all_orders():
    scores, positive = np.array([3.0, 1.0, 7.0, 4.0, 5.0, 9.0]), np.array([False, False, True, False, True, False])

    def wins(chosen: tuple[int, ...]) -> int:
        return sum(scores[i] > scores[j] for i in chosen for j in set(range(6)) - set(chosen))

    orders = list(itertools.combinations(range(6), 2))
    expected = sum(wins(chosen) >= wins((2, 4)) for chosen in orders) / len(orders)
    assert significance.rank_tail(scores, positive) == pytest.approx(expected)
    assert significance.rank_tail(np.arange(8.0), np.arange(8) >= 4) == pytest.approx(1 / 70)


def test_tpr_at_fpr_by_hand():
    """100 negatives at 0 ... 99; positives at -1, 95.5 (4 alarms), 98.5 (1 alarm) and 200 (none)."""
    scores = np.concatenate([np.arange(100.0), [-1, 95.5, 98.5, 200]])
    positive = np.arange(104) >= 100
    assert metrics.tpr_at_fpr(scores, positive) == {"0.01": 0.5, "0.05": 0.75, "0.10": 0.75}
    assert metrics.tpr_at_fpr(scores, positive, (0.0,)) == {"0.00": 0.25}


def test_tpr_at_fpr_sees_every_threshold_of_a_straight_curve():
    """Positives and negatives in strict turns: the curve is a diagonal whose inner points matter all the same."""
    scores = np.repeat(np.arange(100.0), 2)
    positive = np.tile([True, False], 100)
    assert metrics.tpr_at_fpr(scores, positive, (0.01, 0.1, 0.5)) == {"0.01": 0.01, "0.10": 0.1, "0.50": 0.5}


def test_detection_reports_all_three():
    found = metrics.detection(SCORES, POSITIVE)
    assert found.keys() == {"auroc", "average_precision", "tpr_at_fpr"}
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_conformal_by_hand():
    found = significance.conformal(np.array([1.0, 2.0, 2.0, 4.0]), np.array([0.0, 2.0, 3.0, 4.0, 5.0]))
    assert found == pytest.approx(np.array([5, 4, 2, 2, 1]) / 5)


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_conformal_is_the_definition(calibration, scores):
    found = significance.conformal(np.array(calibration, float), np.array(scores, float))
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert found.tolist() == pytest.approx(expected)


def test_conformal_alarms_keep_their_rate_on_clean_images():
    rng = np.random.default_rng(0)
    alarms = [(significance.conformal(rng.normal(size=99), rng.normal(size=100)) <= 0.05).mean() for _ in range(200)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)


def test_binomial_tail():
    assert metrics.binomial_tail(0, 10, 0.1) == 1
    assert metrics.binomial_tail(10, 10, 0.5) == pytest.approx(0.5**10)
    assert metrics.binomial_tail(2, 3, 0.5) == pytest.approx(0.5)


def test_top_accuracy_by_hand():
    positive = np.array([True, False, True, False, True, False, False, False, False, False])
    ranking = np.array([4, 0, 1, 2, 9, 3])
    assert metrics.top_accuracy(ranking, positive) == {"5": 0.6, "10": None, "20": None}
    assert metrics.top_accuracy(ranking, positive, (1, 2, 3, 6)) == {"1": 1, "2": 1, "3": 2 / 3, "6": 0.5}


def test_removal_by_hand():
    positive, flagged = np.arange(10) < 4, np.isin(np.arange(10), [0, 1, 2, 8, 9])
    found = metrics.removal(flagged, positive)
    assert (found["removed"], found["recall"]["value"], found["precision"]["value"]) == (5, 3 / 4, 3 / 5)
    assert (found["recall"]["n"], found["precision"]["n"]) == (4, 5)
    assert metrics.removal(np.zeros(10, bool), positive)["precision"] is None
    assert metrics.removal(np.zeros(10, bool), positive)["recall"]["value"] == 0


@pytest.mark.parametrize(
    ("window", "center", "contained", "half", "iou"),
    [
        ((3, 3, 4, 4), 1, 1, 1, 1),  # the box itself
        ((0, 0, 10, 10), 1, 1, 1, 0),  # 16 of 100 pixels
        ((0, 0, 6, 6), 1, 0, 1, 0),  # 9 of 16; of 43 together
        ((2, 3, 4, 4), 1, 0, 1, 1),  # 12 of 16; of 20
        ((5, 5, 2, 2), 1, 0, 0, 0),  # 4 of 16, the centre on the corner
        ((6, 6, 4, 4), 0, 0, 0, 0),
        ((7, 3, 4, 4), 0, 0, 0, 0),  # side by side
        ((3, 5, 4, 2), 1, 0, 1, 1),  # half of it exactly
    ],
)
def test_localisation_by_hand(window, center, contained, half, iou):
    found = metrics.localisation(np.array([window]), np.array([[3, 3, 4, 4]]))
    values = [found[name]["value"] for name in ("center_hit", "contained", "half_contained", "iou_half")]
    assert values == [center, contained, half, iou] and found["n"] == 1


def test_localisation_counts_and_has_no_share_of_nothing():
    windows, boxes = np.array([[0, 0, 2, 2], [8, 8, 2, 2], [1, 1, 2, 2]]), np.tile([1, 1, 2, 2], (3, 1))
    assert metrics.localisation(windows, boxes)["contained"]["value"] == pytest.approx(1 / 3)
    none = metrics.localisation(windows[:0], boxes[:0])
    assert none.pop("n") == 0 and set(none.values()) == {None}
