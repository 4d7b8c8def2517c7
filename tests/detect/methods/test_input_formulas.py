"""Detectors of inputs that follow one formula agree with a loop over it, image by image."""

import functools

import numpy as np
import pytest
import torch

from planted import Honest, Other, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting
from sslbd_cli.errors import InputError


@pytest.fixture
def setting(cpu):
    return Setting(make(Honest), Session(cpu), reference=make(Other))


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def embedded(images):
    """Embed pictures in [0,1], one by one: the mean of each 4x4 cell less one half."""
    cells = np.asarray(images, np.float64).reshape(3, 4, 4, 4, 4).mean((2, 4))
    return cells.ravel() - 0.5


# --- formulas: (images to learn on, images to judge, what was learned) -> column -> scores and tolerance ------------


def strip(learned, images, state):
    """Five overlays of opacity 0.3 and three centres."""
    overlays, centers = state["overlays"].numpy(), state["centers"].double().numpy()
    scores, entropies = [], []
    for image in images:
        z = [embedded((0.7 * image + 0.3 * other) / 255) for other in overlays]
        scores.append(np.mean([cosine(z[i], z[j]) for i in range(5) for j in range(5) if i != j]))
        logits = np.array([[cosine(each, center) / 0.1 for center in centers] for each in z])
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropies.append((share * np.log(share)).sum(1).mean())
    return {"score": (scores, 1e-4), "entropy": (entropies, 1e-3)}


def scale_up(learned, images, state):
    """Factors 2 to 4."""

    def kept(image):
        return [cosine(embedded(np.minimum(n * image / 255, 1)), embedded(image / 255)) for n in (2, 3, 4)]

    clean = np.array([kept(image) for image in learned.astype(float)])
    asked = np.array([kept(image) for image in images.astype(float)])
    score = ((asked - clean.mean(0)) / clean.std(0)).mean(1)
    return {"uncalibrated": (asked.mean(1), 1e-5), "score": (score, 1e-3)}


def feature_norm(sign, learned, images, state):
    norms, asked = ([np.linalg.norm(embedded(image / 255)) for image in part] for part in (learned, images))
    away = (np.array(asked) - np.median(norms)) / np.median(np.abs(norms - np.median(norms)))
    return {"score": (away * sign if sign else np.abs(away), 1e-3)}


def knn_distance(k, side, learned, images, state):
    unit = [z / np.linalg.norm(z) for z in (embedded(image / 255) for image in learned)]

    def distance(z, bank):
        return sorted(np.linalg.norm(z - each) for each in bank)[k - 1]

    clean = [distance(z, unit[:at] + unit[at + 1 :]) for at, z in enumerate(unit)]
    middle = sorted(clean)[(len(clean) - 1) // 2]
    far, near = (np.array(part) for part in ([d - middle for d in clean if d >= middle],
                                             [middle - d for d in clean if d <= middle]))  # fmt: skip
    far, near = (sorted(part)[(len(part) - 1) // 2] for part in (far, near))
    scores = []
    for image in images:
        z = embedded(image / 255)
        d = distance(z / np.linalg.norm(z), unit)
        scores.append({"far": d, "near": -d, "both": max((d - middle) / far, (middle - d) / near)}[side])
    return {"score": (scores, 1e-4 if side != "both" else 2e-2)}


CASES = {
    "strip:overlays=5,clusters=3,opacity=0.3": (40, strip),
    "scale-up:scales=4": (30, scale_up),
    "feature-norm:side=long": (31, functools.partial(feature_norm, 1)),
    "feature-norm:side=short": (31, functools.partial(feature_norm, -1)),
    "feature-norm:side=both": (31, functools.partial(feature_norm, 0)),
    "knn-distance:k=1,side=far": (30, functools.partial(knn_distance, 1, "far")),
    "knn-distance:k=7,side=near": (30, functools.partial(knn_distance, 7, "near")),
    "knn-distance:k=7": (30, functools.partial(knn_distance, 7, "both")),
}


@pytest.mark.parametrize(("spec", "count", "formula"), [(spec, *case) for spec, case in CASES.items()], ids=CASES)
def test_the_scores_agree_with_the_formula(setting, spec, count, formula):
    method = plugin.parse("detector", spec)
    learned, images = make_pictures(count, 2).images, make_pictures(6, 1).images
    state = method.learn(learned, setting)
    columns = method.look(images, state, setting).columns
    for column, (expected, tolerance) in formula(learned, images, state).items():
        assert columns[column] == pytest.approx(np.asarray(expected), abs=tolerance), column


# --- what is learned ----------------------------------------------------------------------------------------------


def test_the_overlays_of_strip_are_distinct_images_of_those_learned_on(setting):
    images = make_pictures(40, 2).images
    overlays = plugin.parse("detector", "strip").learn(images, setting)["overlays"].numpy()
    rows = [np.flatnonzero((images == overlay).all((1, 2, 3))).tolist() for overlay in overlays]
    assert len({row for (row,) in rows}) == 16


def test_what_the_reference_of_platonic_tells_linearly_scores_low(setting):
    """The map is exact where the encoder is a linear image of the reference: here, of itself."""
    same = Setting(setting.encoder, setting.session, reference=setting.encoder)
    method = plugin.parse("detector", "platonic:ridge=0.0,components=8")
    learned, images = make_pictures(200, 2).images, make_pictures(20, 1).images
    own = method.look(images, method.learn(learned, same), same).columns["score"]
    other = method.look(images, method.learn(learned, setting), setting).columns["score"]
    assert own.max() < 1e-6 < other.min()


def test_the_map_of_platonic_is_ridge_regression_on_whitened_components(setting):
    method = plugin.parse("detector", "platonic:ridge=0.5,components=6")
    learned = make_pictures(100, 2).images
    state = method.learn(learned, setting)
    ours = np.array([embedded(image / 255) for image in learned])
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    whitened_feats = (ours - ours.mean(0)) @ state["whiten"].numpy()
    assert np.allclose(whitened_feats.T @ whitened_feats / len(whitened_feats), np.eye(6), atol=1e-3)
    with torch.no_grad():
        x = torch.nn.functional.normalize(setting.reference(torch.from_numpy(learned)), dim=1).double().numpy()
    x = x - x.mean(0)
    gram = x.T @ x
    expected = np.linalg.inv(gram + 0.5 * np.trace(gram) / len(gram) * np.eye(len(gram))) @ x.T @ whitened_feats
    assert np.allclose(state["across"].numpy(), expected, atol=1e-3)


def test_large_images_are_asked_less_often():
    scale_up = plugin.parse("detector", "scale-up")
    assert scale_up.factors_for(64).tolist() == list(range(1, 12))
    assert scale_up.factors_for(224).tolist() == [1, 2, 5, 8, 11]
    assert plugin.parse("detector", "scale-up:factors=1").factors_for(224).tolist() == [1, 11]
    with pytest.raises(InputError, match="overlays=1: blends are compared with each other; give 2 or more"):
        plugin.parse("detector", "strip:overlays=1")
