import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.features import embed
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence
from wired import make_poisoned, make_scenes, make_wired


def look(spec, images, cpu, net=None):
    return plugin.parse("detector", spec).run(net or make_wired(), Evidence(images), Session(cpu))


def signature(images, cpu, centred):
    """Tran et al.'s score of one class, by its definition."""
    z = embed(make_wired(), images, Session(cpu)).numpy().astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    middle = z - z.mean(0)
    values, vectors = np.linalg.eigh(middle.T @ middle)
    return ((middle if centred else z) @ vectors[:, values.argmax()]) ** 2


@pytest.mark.parametrize(("compat", "centred"), [("none", True), ("authors", False)])
def test_scores_are_squared_projections_on_the_main_direction(cpu, compat, centred):
    images = make_poisoned().images
    scores = look(f"spectral:clusters=1,compat={compat}", images, cpu).scores.values
    assert np.allclose(scores, signature(images, cpu, centred), atol=1e-5)


def test_centring_matters(cpu):
    """The mean that is left in tells clean images of large common features from others, not poison from clean."""
    images = make_poisoned().images
    ours, theirs = (look(f"spectral:clusters=1,compat={name}", images, cpu) for name in ("none", "authors"))
    assert not np.allclose(ours.scores.values, theirs.scores.values, atol=1e-2)
    assert np.array_equal(ours.scores.flagged, theirs.scores.flagged)  # deviations from a median do not care


def test_poison_is_flagged_in_the_backdoored_encoder_alone(cpu):
    data = make_poisoned()
    findings = look("spectral:clusters=1", data.images, cpu)
    assert np.array_equal(findings.scores.flagged, data.truth.poisoned)
    assert auroc(findings.scores.values, data.truth.poisoned)["value"] == 1
    honest = look("spectral:clusters=1", data.images, cpu, make_wired(backdoor=False))
    assert not honest.scores.flagged.any()
    assert auroc(honest.scores.values, data.truth.poisoned)["value"] < 0.7
    assert not look("spectral:clusters=1", make_scenes().images, cpu).scores.flagged.any()


def test_the_published_rule_takes_its_share_of_a_clean_set_too(cpu):
    findings = look("spectral:clusters=3,rule=share,share=0.1", make_scenes().images, cpu)
    assert findings.scores.flagged.mean() == pytest.approx(0.1, abs=0.01)
    whole = look("spectral:clusters=1,rule=share,share=0.1", make_scenes().images, cpu)
    assert whole.scores.values[whole.scores.flagged].min() >= whole.scores.values[~whole.scores.flagged].max()


def test_small_clusters_of_clean_images_are_not_flagged(cpu):
    """Of three images one is always far out by their own median."""
    findings = look("spectral:clusters=60", make_scenes().images, cpu)
    assert not findings.scores.flagged.any()


@pytest.mark.parametrize("count", [1, 2, 3, 25])
def test_few_or_equal_images_say_nothing(cpu, count):
    findings = look("spectral:clusters=1", make_scenes(count).images[:1].repeat(count, 0), cpu)
    assert not findings.scores.flagged.any() and np.isfinite(findings.scores.values).all()
    assert torch.tensor(findings.scores.values).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["spectral", "activation-clustering"])
def test_a_set_hardly_any_of_which_is_judged_is_in_doubt(cpu, name):
    images = make_scenes().images
    findings = look(f"{name}:clusters=60", images, cpu)
    assert f"of {len(images)} images are in clusters of at least 20; give fewer clusters=" in findings.doubt
    assert not look(f"{name}:clusters=3", images, cpu).doubt


def test_a_fixed_share_is_no_evidence(cpu):
    assert not look("spectral:clusters=3,rule=share", make_scenes().images, cpu).scores.is_evidence
    assert look("spectral:clusters=3", make_scenes().images, cpu).scores.is_evidence
