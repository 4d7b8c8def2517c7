import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, FastICA

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.detect.methods.activation_clustering import independent, principal
from wired import make_poisoned, make_scenes, make_wired


def look(keys, images, cpu, net=None):
    detector = plugin.parse("detector", f"activation-clustering:{keys}")
    return detector.run(net or make_wired(), Evidence(images), Session(cpu))


def mixture(count=2000):
    """Three independent sources, none normal, seen through five channels."""
    rng = np.random.default_rng(0)
    sources = np.stack([rng.uniform(-1, 1, count), rng.laplace(size=count), rng.integers(0, 2, count)], axis=1)
    return sources, torch.from_numpy(sources @ rng.normal(size=(3, 5))).float()


def matched(a, b):
    """Return the least of the best absolute correlations between columns: 1 where they are the same, in any order."""
    table = np.abs(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :])
    return min(table.max(0).min(), table.max(1).min())


def test_principal_components_are_scikit_learns():
    _, x = mixture()
    expected = PCA(3).fit_transform(x.numpy())
    components = principal(x, 10).numpy()
    assert components.shape == (2000, 3)  # there are no more
    assert np.allclose(np.abs(components), np.abs(expected), atol=1e-3)


def test_independent_components_are_scikit_learns_and_the_sources():
    sources, x = mixture()
    components = independent(principal(x, 3), generator(0, "ica")).numpy()
    assert np.allclose(components.T @ components / len(components), np.eye(3), atol=1e-3)
    expected = FastICA(3, whiten="unit-variance", random_state=0).fit_transform(x.numpy())
    assert matched(components, expected) > 0.999
    assert matched(components, sources) > 0.99


@pytest.mark.parametrize("reduce", ["ica", "pca"])
def test_poison_is_flagged_in_the_backdoored_encoder_alone(cpu, reduce):
    data, keys = make_poisoned(), f"clusters=1,reduce={reduce}"
    findings = look(keys, data.images, cpu)
    assert np.array_equal(findings.scores.flagged, data.truth.poisoned)
    assert auroc(findings.scores.values, data.truth.poisoned)["value"] == 1
    honest = look(keys, data.images, cpu, make_wired(backdoor=False))
    assert not honest.scores.flagged.any()
    assert auroc(honest.scores.values, data.truth.poisoned)["value"] < 0.7
    assert not look(keys, make_scenes().images, cpu).scores.flagged.any()


def test_without_the_silhouette_a_clean_set_loses_images(cpu):
    """As published: 2-means always splits."""
    assert look("clusters=5,silhouette=0.0001", make_scenes().images, cpu).scores.flagged.any()


def test_a_larger_part_than_poison_can_be_is_not_flagged(cpu):
    data = make_poisoned(40)
    keys = "clusters=1,reduce=pca"
    assert np.array_equal(look(keys, data.images, cpu).scores.flagged, data.truth.poisoned)
    assert not look(f"{keys},share=0.19", data.images, cpu).scores.flagged.any()  # they are a fifth
    assert look(f"{keys},share=0.21", data.images, cpu).scores.flagged.any()


@pytest.mark.parametrize("count", [1, 19, 25])
def test_few_or_equal_images_say_nothing(cpu, count):
    images = make_scenes(1).images.repeat(count, 0) if count == 25 else make_scenes(count).images
    findings = look("clusters=1", images, cpu)
    assert not findings.scores.flagged.any() and not findings.scores.values.any()
