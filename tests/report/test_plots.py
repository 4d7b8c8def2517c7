"""Figures: equal bytes for equal input, pixels enlarged exactly, curves that agree with an independent reference."""

import io
import logging
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.report import figures, plots

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 3, 32, 32), np.uint8)
TRUTH = np.arange(40) % 2 == 1
SCORES = RNG.normal(size=40) + 2 * TRUTH


def detection(**data):
    arrays = {
        "scores": SCORES,
        "calibration": RNG.normal(size=30),
        "truth/poisoned": TRUTH,
        "pictures/input": IMAGES,
        "pictures/reconstruction": IMAGES,
        "pictures/error": IMAGES[:, :1],
        "pictures/poisoned": TRUTH[:8],
        "pictures/score": SCORES[:8],
    }
    results = {"method": "dede", "threshold": 1.0, "auroc": {"value": 0.9, "low": 0.8, "high": 1.0}}
    return Report(command="detect", results=results, data={k: v for k, v in (arrays | data).items() if v is not None})


def names(report):
    return [picture.name for picture in figures.pictures(report)]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_equal_input_gives_equal_bytes_without_a_date_or_a_program():
    first, second = (figures.pictures(detection(calibration=SCORES)) for _ in range(2))
    assert [p.png for p in first] == [p.png for p in second]
    assert all(set(Image.open(io.BytesIO(p.png)).info) <= {"dpi"} for p in first)


def test_the_users_style_changes_nothing(monkeypatch):
    import matplotlib

    before = plots.histogram({"clean": SCORES}, 1.0)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    assert plots.histogram({"clean": SCORES}, 1.0) == before
    assert matplotlib.rcParams["font.size"] == 30


def test_small_images_are_enlarged_pixel_by_pixel():
    drawn = pixels(plots.board([plots.PictureRows("", "black", [("clean", IMAGES[:2])])]))
    factor = plots.TILE // 32
    wanted = np.kron(IMAGES[0].transpose(1, 2, 0), np.ones((factor, factor, 1), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(drawn, wanted.shape)[:, :, 0]
    assert any((windows[y, x] == wanted).all() for y in range(30) for x in range(60))


def test_large_images_are_shrunk_and_any_shape_fits():
    png = plots.board([plots.PictureRows("t", "black", [("clean", np.zeros((1, 3, 700, 350), np.uint8))])])
    assert max(pixels(png).shape) < 500


@pytest.mark.parametrize("scores", [SCORES, np.round(SCORES), np.zeros(40), np.where(TRUTH, np.inf, SCORES)])
def test_roc_points_agree_with_sklearn(scores):
    fpr, tpr = plots.roc_points(scores, TRUTH)
    finite = np.where(np.isinf(scores), 1e9, scores)
    want_fpr, want_tpr, _ = roc_curve(TRUTH, finite, drop_intermediate=False)
    np.testing.assert_allclose((fpr, tpr), (want_fpr, want_tpr))
    area = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    assert area == pytest.approx(roc_auc_score(TRUTH, finite))


def test_a_whole_detection_shows_all_and_a_missing_array_only_loses_its_figure():
    assert names(detection()) == ["examples", "scores", "roc"]
    gone = dict.fromkeys(["pictures/input", "pictures/reconstruction", "pictures/error"])
    assert names(detection(**gone)) == ["scores", "roc"]
    assert names(detection(**{"truth/poisoned": None})) == ["examples", "scores"]
    assert names(detection(scores=None)) == ["examples"]
    assert names(Report(command="detect", results={}, data={})) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": np.zeros((4, 4)), "pictures/input": IMAGES[:3]},
        {"truth/poisoned": TRUTH[:7], "pictures/input": IMAGES.astype(float)},
        {"truth/poisoned": TRUTH & False, "pictures/input": IMAGES[:0]},
    ],
)
def test_an_array_that_is_not_what_it_says_is_left_out(wrong):
    assert "roc" not in names(detection(**wrong))
    assert names(Report(command="probe", results={}, data={"sheet/clean": IMAGES[0], "confusion/clean": SCORES})) == []


def test_examples_show_clean_above_the_most_suspicious_triggered(monkeypatch):
    boards = []
    monkeypatch.setattr(plots, "board", lambda blocks: boards.extend(blocks) or b"")
    figures.pictures(detection())
    clean, triggered = boards
    assert "clean" in clean.title
    assert "triggered" in triggered.title
    order = [row for row in np.argsort(-SCORES[:8]) if TRUTH[row]]
    np.testing.assert_array_equal(triggered.rows[0][1], IMAGES[order])
    assert triggered.captions[0] == f"{SCORES[order[0]]:.3g} ▲"
    assert [name for name, _ in clean.rows] == ["input", "reconstruction", "error"]


def test_a_faint_trigger_is_made_visible(monkeypatch):
    boards = []
    monkeypatch.setattr(plots, "board", lambda blocks: boards.extend(blocks) or b"")
    clean = IMAGES.clip(0, 250)
    picture = figures.sheet(clean, clean + np.uint8(3))
    assert [name for name, _ in boards[0].rows] == ["clean", "triggered", "change ×85"]
    assert boards[0].rows[2][1].min() == 255
    assert "at most 3/255, drawn 85 times as large" in picture.caption


def test_labels_are_never_formulas():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evil = r"$\frac{$ 漢字 \x"
        estimate = {"ASR": (0.5, 0.4, 0.6)}
        assert plots.overview([(evil, estimate), ("b", {"clean accuracy": (1, 1, 1)})])
        assert plots.roc({evil: (SCORES, TRUTH)})
        assert plots.confusions({evil: np.eye(3)})


@pytest.mark.parametrize("scores", [[5.0], [1e17, 1e17 + 16], [-1.7e308, 1.7e308], [0.0, np.inf, np.nan], [1e-320] * 2])
@pytest.mark.parametrize("threshold", [None, 0.0, 1e308])
def test_histograms_of_extreme_scores(scores, threshold):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.histogram({"calibration": np.array(scores)}, threshold)


def test_reports_are_compared_only_where_there_are_several():
    probe = Report(command="probe", results={"asr": {"value": 0.5, "low": 0.4, "high": 0.6}})
    assert figures.across([("a", probe), ("d", detection())]) == []
    both = figures.across([("a", probe), ("b", probe), ("d", detection()), ("e", detection())])
    assert [picture.name for picture in both] == ["overview", "roc-all"]


def of_samples(**data):
    arrays = {"scores": SCORES, "flagged": SCORES > 1.5, "truth/poisoned": TRUTH} | data
    kept = {name: array for name, array in arrays.items() if array is not None}
    return Report(command="detect", results={"method": "x", "flags": "samples", "threshold": 9.0}, data=kept)


def test_precision_and_recall_over_k_agree_with_counting():
    taken, hits = plots.retrieved(SCORES, TRUTH)
    best = [row for _, row in sorted(zip(-SCORES, range(40), strict=True))]
    assert taken.tolist() == list(range(1, 41))
    np.testing.assert_allclose(hits, [sum(TRUTH[row] for row in best[:k]) for k in range(1, 41)])


def test_equal_scores_give_the_mean_over_their_orders():
    hits = plots.retrieved(np.array([3.0, 1, 1, 1, 0]), np.array([False, True, False, True, True]))[1]
    np.testing.assert_allclose(hits, [0, 2 / 3, 4 / 3, 2, 3])
    ends = plots.retrieved(np.zeros(100_000), np.arange(100_000) < 500)
    assert len(ends[0]) <= 1000
    np.testing.assert_allclose(ends[1] / ends[0], 0.005)


def test_detectors_of_samples_show_retrieval_and_no_threshold(monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "histogram", lambda *given: drawn.update(histogram=given) or b"")
    monkeypatch.setattr(plots, "roc", lambda *given: drawn.update(roc=given) or b"")
    shown = {picture.name: picture.caption for picture in figures.pictures(of_samples(calibration=SCORES))}
    assert list(shown) == ["scores", "retrieval", "roc"]
    assert "calibration" not in shown["scores"]
    assert "the base rate, 50 %." in shown["retrieval"]
    groups, threshold = drawn["histogram"]
    assert (list(groups), threshold) == (["clean", "poisoned"], None)
    assert drawn["roc"][1:] == (None, "poisoned")
    assert "retrieval" not in names(detection())


def test_equal_samples_give_equal_bytes():
    first, second = (figures.pictures(of_samples()) for _ in range(2))
    assert [picture.png for picture in first] == [picture.png for picture in second]


def test_without_truth_the_flagged_are_set_apart(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "histogram", lambda groups, _: drawn.append(list(groups)) or b"")
    for flagged in (SCORES > 1.5, SCORES > 99, None, np.ones(3, bool), np.ones((40, 2), bool), SCORES):
        assert names(of_samples(**{"truth/poisoned": None, "flagged": flagged})) == ["scores"]
    assert drawn == [["not flagged", "flagged"], *[["training images"]] * 5]


@pytest.mark.parametrize(
    ("scores", "flagged"),
    [
        (SCORES * 0, SCORES > 99),
        (SCORES * 1e300, SCORES < 99),
        (np.where(TRUTH, np.inf, -np.inf), np.ones(3, bool)),
        (np.where(SCORES > 0, SCORES, np.nan), SCORES > 1.5),
        (np.full(40, np.nan), None),
    ],
)
def test_retrieval_of_extreme_scores(scores, flagged):
    report = of_samples(flagged=flagged, scores=scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ("retrieval" in names(report)) == (not np.isnan(scores).all())


def test_matplotlib_does_not_warn_of_a_home_that_it_cannot_write():
    assert logging.getLogger("matplotlib").getEffectiveLevel() == logging.ERROR
