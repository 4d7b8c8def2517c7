"""PatchSearch and PoisonCAM, whole, on sets with a trigger planted by hand and on the same without."""

import dataclasses

import numpy as np
import pytest

from sslbd_cli import plugin
from sslbd_cli.core import loader
from sslbd_cli.core.metrics import auroc, localisation, top_accuracy
from sslbd_cli.core.session import Session
from sslbd_cli.detect import image_verdict
from sslbd_cli.detect.contract import Evidence, Findings
from sslbd_cli.detect.patch_scan.search import Candidates
from sslbd_cli.errors import InputError
from wired import SIZE, make_scattered, make_scenes, make_sharp

#: small enough for a second; windows of 5 of 16 pixels carry more of a scene than 10 of 32: a higher bar
SMALL = {"clusters": 6, "per_cluster": 4, "window": 5, "tests": 64, "stride": 1, "capture": 0.6, "models": 1,
         "steps": 80, "batch": 32, "smallest": 0.25, "largest": 0.4}  # fmt: skip
NAMES = ["patchsearch", "poisoncam"]
every_name = pytest.mark.parametrize("name", NAMES)


def make(name, **keys):
    return plugin.parse("detector", f"{name}:" + ",".join(f"{k}={v}" for k, v in (SMALL | keys).items()))


def look(name, data, cpu, net=None, boxes=None, seed=0, **keys) -> Findings:
    return make(name, **keys).run(net or make_sharp(), Evidence(data.images, boxes=boxes), Session(cpu, seed))


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    """Scan few images at a time: their maps of 64 channels then fit a CPU's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loader.AT_ONCE, "scanned images", (128, 8192))
        yield


@pytest.fixture(scope="module")
def data():
    return make_scattered(24, 160)


@pytest.fixture(scope="module")
def found(data):
    """What each says with its defaults, found once."""
    import torch

    from sslbd_cli.core.device import Device

    return {name: look(name, data, Device(torch.device("cpu"), "fp32")) for name in NAMES}


@every_name
def test_the_planted_are_found(found, data, name):
    findings, poisoned = found[name], data.truth.poisoned
    assert findings.scores.flagged[poisoned].mean() >= 0.9
    assert poisoned[findings.scores.flagged].mean() >= {"patchsearch": 0.5, "poisoncam": 0.9}[name]
    assert auroc(findings.scores.values, poisoned)["value"] > 0.95
    assert top_accuracy(findings.scores.ranking, poisoned, (5, 10))["5"] == 1
    assert findings.summary["triggers"] > 0 and findings.summary["best_capture"] >= 0.6
    assert findings.summary["candidates"] == len(findings.scores.ranking)


def test_poisoncam_ranks_twenty_planted_first_in_windows_that_hit(found, data):
    findings, poisoned = found["poisoncam"], data.truth.poisoned
    assert top_accuracy(findings.scores.ranking, poisoned)["20"] == 1
    rows = np.flatnonzero(findings.scores.flagged & poisoned)
    hits = localisation(findings.scores.windows[rows], data.truth.box[rows])
    assert hits["n"] >= 21 and hits["center_hit"]["value"] >= 0.95


@every_name
def test_what_is_told_fits_what_was_looked_at(found, data, name):
    findings = found[name]
    scores, arrays = findings.scores, findings.pictures.arrays
    has_window = scores.windows[:, 2] > 0
    assert has_window[scores.ranking].all() and scores.windows.dtype == np.int32
    assert (scores.windows[has_window, 2:] == 5).all() and (scores.windows[:, :2] + scores.windows[:, 2:] <= SIZE).all()
    assert f"chosen by {make(name).localiser} in {len(scores.ranking)} of 160 images" in findings.search_space
    for row, (x, y, side, _), patch in zip(arrays["found/rows"], arrays["found/windows"], arrays["found/patches"],
                                           strict=True):  # fmt: skip
        assert np.array_equal(patch, data.images[row][:, y : y + side, x : x + side])
    assert np.array_equal(arrays["found/rows"], scores.ranking[: len(arrays["found/rows"])])
    assert np.array_equal(arrays["found/images"], data.images[arrays["found/rows"]])
    trigger = arrays["found/trigger"]
    assert trigger.shape == (1, 3, 5, 5) and (trigger > 240).mean() > 0.6  # it was white


@every_name
def test_in_a_clean_set_nothing_is_found(cpu, name):
    findings = look(name, make_scenes(160), cpu, make_sharp(backdoor=False))
    assert not findings.scores.flagged.any() and findings.summary["triggers"] == findings.summary["classified"] == 0
    assert findings.summary["best_capture"] < 0.6 and "found/trigger" not in findings.pictures.arrays
    assert np.isfinite(findings.scores.values).all() and len(findings.scores.ranking) > 20


@every_name
def test_a_backdoored_encoder_flags_no_clean_set(cpu, name):
    assert not look(name, make_scenes(160), cpu).scores.flagged.any()


@every_name
def test_a_classifier_that_flags_nothing_is_no_accident(data, cpu, name):
    """Untaught classifiers may see a patch nowhere: then what the search has proven is flagged, or nothing is."""
    findings = look(name, data, cpu, lr=0, steps=1, decision="verified")
    assert findings.summary["triggers"] > 0 and findings.scores.flagged.sum() >= findings.summary["triggers"]


@pytest.mark.story
@pytest.mark.parametrize("localiser", ["mask", "rise", "oracle"])
def test_every_localiser_serves_both(data, cpu, localiser):
    """They share all but the window: with the same localiser and decision they are one detector."""
    keys = {"localiser": localiser, "decision": "verified", "masks": 64, "steps": 2}
    boxes = data.truth.box if localiser == "oracle" else None
    one, other = (look(name, data, cpu, boxes=boxes, **keys) for name in NAMES)
    assert np.array_equal(one.scores.values, other.scores.values) and np.array_equal(
        one.scores.flagged, other.scores.flagged
    )
    assert make("patchsearch", localiser=localiser).is_bound == (localiser == "oracle")
    assert top_accuracy(one.scores.ranking, data.truth.poisoned)["10"] == 1
    assert (one.scores.windows[one.scores.flagged, 2] == 5).all()  # verified with a window


@every_name
def test_the_oracle_without_truth_is_refused(data, name):
    bare = dataclasses.replace(data, truth=None)
    with pytest.raises(InputError, match=f"{name}: a bound needs the recorded truth"):
        image_verdict.make_samples_case(bare, make(name, localiser="oracle"))
    assert image_verdict.make_samples_case(data, make(name, localiser="oracle")).evidence.boxes is not None
    assert image_verdict.make_samples_case(data, make(name)).evidence.boxes is None


@every_name
def test_compat_authors_runs_and_differs(found, data, cpu, name):
    findings = look(name, data, cpu, compat="authors", steps=2)
    assert np.isfinite(findings.scores.values).all()
    theirs, ours = findings.pictures.arrays["found/scores"], found[name].pictures.arrays["found/scores"]
    assert len(theirs) != len(ours) or not np.array_equal(theirs, ours)


def test_exhaustive_agrees_on_the_first(found, data, cpu):
    findings = look("poisoncam", data, cpu, exhaustive=True, steps=5, decision="classifier")
    assert top_accuracy(findings.scores.ranking, data.truth.poisoned)["20"] == 1
    assert findings.summary["best_flips"] == pytest.approx(found["poisoncam"].summary["best_flips"], abs=0.02)


@every_name
@pytest.mark.parametrize("keys", [{"tests": 8}, {"top": 500}, {"batch": 200}])
def test_odd_settings_run(cpu, name, keys):
    findings = look(name, make_scattered(10, 80), cpu, **({"steps": 2, "exclude": 0.1} | keys))
    assert np.isfinite(findings.scores.values).all() and findings.scores.flagged.dtype == bool


@every_name
def test_a_window_larger_than_the_image_is_refused(data, cpu, name):
    with pytest.raises(InputError, match="a window of 17 pixels is larger than the images of 16"):
        look(name, data, cpu, window=17)


def test_scores_and_flags_of_the_verified_say_the_same(data, cpu):
    """Also where the classifiers, taught nothing, suspect none of the triggers that the search has proven."""
    for findings in (look("poisoncam", data, cpu, lr=0, steps=1), look("poisoncam", data, cpu)):
        assert findings.scores.flagged.any() and np.array_equal(findings.scores.flagged, findings.scores.values > 0)


def test_the_trigger_shown_is_the_first_proven(data, cpu):
    from sslbd_cli.detect.patch_scan.scan import Scan

    scan = Scan(make("poisoncam"), make_sharp(), Evidence(data.images), Session(cpu))
    candidates = scan.look()
    later = Candidates(*(part[3:4] for part in (candidates.rows, candidates.windows, candidates.scores)))
    arrays = scan.pictures(candidates, later)
    assert np.array_equal(arrays["found/trigger"], arrays["found/patches"][3:4])


@pytest.mark.parametrize(("count", "share", "word"), [(60, 0.4, "40% of the images"), (30, 0.1, "give clusters=4")])
def test_what_no_poisoning_looks_like_is_in_doubt(count, share, word):
    flagged = np.arange(count) < share * count
    assert word in make("poisoncam", clusters=6).doubt(flagged)
    assert not make("poisoncam", clusters=6).doubt(np.arange(60) < 6)
    assert not make("poisoncam", clusters=6).doubt(np.zeros(count, bool))
