"""The laws of `detect --method`, for every detector of samples; those of inputs are in test_input_detectors.py."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from contracts.classes import class_of
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.artefacts.kinds import Dataset, Report
from sslbd_cli.core import nets
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector
from sslbd_cli.errors import InputError
from wired import KINDS, make_poisoned, make_scattered, make_scenes, make_sharp, make_wired
from worded import captions_for, worded

SAMPLES = [name for name in plugin.listing("detector") if class_of("detector", name).judges == "samples"]
RANKING = [name for name in SAMPLES if name != "random"]  # a floor flags and ranks whatever it is given
SEEING = [name for name in RANKING if name != "pair-cosine"]  # those that rank by the images alone
CLUSTERED = [name for name in SAMPLES if "clusters" in {key.name for key in plugin.listing("detector")[name].keys}]
AS_MANY, ALL_AT_ONCE = KINDS + 1, 1  # clusters: one for the poison, too; none
SCANS = [name for name in SAMPLES if "window" in {key.name for key in plugin.listing("detector")[name].keys}]
#: of detectors that cut windows out and teach a classifier; what a scene of 16 pixels carries, 10 of 32 do not
SMALL = {"window": 5, "capture": 0.6, "per_cluster": 6, "steps": 30, "models": 1, "batch": 32}

every_sampler = pytest.mark.parametrize("name", SAMPLES)
every_ranker = pytest.mark.parametrize("name", RANKING)


@pytest.fixture
def make(spec):
    """Return a small detector of a name."""

    def build(name: str, clusters: int = AS_MANY) -> ImageDetector:
        return plugin.parse("detector", spec("detector", name, clusters=clusters, epochs=2, **SMALL))

    return build


def look(detector: ImageDetector, data: Dataset, cpu, seed: int = 0, net: nets.ImageEncoder | None = None) -> Findings:
    """Judge a training set; a bound is told where the triggers are."""
    boxes = np.zeros((len(data.images), 4), int) if data.truth is None else data.truth.box
    texts = captions_for(data.labels) if detector.reads_captions else None
    evidence = Evidence(data.images, boxes=boxes if detector.is_bound else None, captions=texts)
    return detector.run(worded(net or make_wired(), detector.reads_texts), evidence, Session(cpu, seed))


@every_sampler
def test_encoder_and_images_are_left_as_they_were(name, make, cpu):
    net, data = make_wired().requires_grad_(True), make_poisoned()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = data.images.copy()
    look(make(name), data, cpu, net=net)
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training and all(not module._forward_hooks for module in net.modules())
    assert np.array_equal(data.images, images)


@every_sampler
def test_every_image_gets_a_finite_score_and_an_answer(name, make, cpu):
    data = make_poisoned()
    findings, count = look(make(name), data, cpu), len(data.images)
    scores = findings.scores
    assert scores.values.shape == (count,) and scores.values.dtype == np.float64
    assert np.isfinite(scores.values).all()
    assert scores.flagged is not None and scores.flagged.shape == (count,) and scores.flagged.dtype == bool
    assert len(scores.calibration) == 0
    assert findings.search_space
    assert json.loads(json.dumps(findings.summary)) == findings.summary
    if scores.ranking is not None:
        assert len(np.unique(scores.ranking)) == len(scores.ranking) and set(scores.ranking) <= set(range(count))
    if scores.windows is not None:
        assert scores.windows.shape == (count, 4)


@every_sampler
def test_one_seed_is_one_answer(name, make, cpu):
    data = make_poisoned()
    first, again = (look(make(name), data, cpu) for _ in range(2))
    assert np.array_equal(first.scores.values, again.scores.values)
    assert np.array_equal(first.scores.flagged, again.scores.flagged)
    assert first.summary == again.summary


@every_ranker
def test_a_clean_set_is_hardly_flagged(name, make, cpu):
    assert look(make(name), make_scenes(), cpu).scores.flagged.mean() <= 0.02


@pytest.mark.parametrize("name", SEEING)
def test_a_planted_trigger_ranks_above_clean(name, make, cpu):
    """With a cluster for the poison or without, as the method needs it; in maps that show where it is, if need be."""
    data, net, areas = make_poisoned(), make_wired(), []
    if name in SCANS:
        data, net = make_scattered(), make_sharp()
    for clusters in (AS_MANY,) if name in SCANS else (AS_MANY, ALL_AT_ONCE):
        areas.append(auroc(look(make(name, clusters), data, cpu, net=net).scores.values, data.truth.poisoned)["value"])
        if areas[-1] > 0.95:
            return
    pytest.fail(f"AUROC {areas}")


@every_sampler
def test_truth_and_history_change_nothing(name, make, sslbd, tmp_path):
    detector, data = make(name), make_poisoned()
    net, with_truth, bare = (str(tmp_path / file) for file in ("net.safetensors", "told.h5", "bare.h5"))
    kinds.write(nets.save(worded(make_wired(), detector.reads_texts)), net)
    data = dataclasses.replace(data, captions=captions.encode(captions_for(data.labels)))
    kinds.write(data, with_truth)
    kinds.write(dataclasses.replace(data, truth=None, history=(), labels=None, classes=()), bare)
    reports = []
    for path in (with_truth, bare):
        out = f"{path}.report"
        status, _, err = sslbd("detect", net, "--method", detector, "--data", path, "--device", "cpu", "-q", "-o", out)
        if detector.is_bound and path == bare:
            assert status == 2 and "truth" in err
            return
        assert status in (0, 3), err
        reports.append(kinds.read(out, Report))
    known, blind = reports
    for key in ("scores", "flagged"):
        assert np.array_equal(known.data[key], blind.data[key])
    for key in ("verdict", "flagged", "details", "doubt"):
        assert known.results[key] == blind.results[key]
    assert known.results["auroc"] is not None and blind.results["auroc"] is None


@pytest.mark.parametrize("name", CLUSTERED)
def test_fewer_images_than_clusters_are_refused(name, make, cpu):
    with pytest.raises(InputError, match="50 clusters of 40 ") as error:
        look(make(name, clusters=50), make_poisoned(poisons=5, count=40), cpu)
    assert "\n" not in str(error.value)
