import numpy as np
import pytest

from planted import Honest, Other, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting


@pytest.fixture
def setting(cpu):
    return Setting(make(Honest), Session(cpu), reference=make(Other))


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def embedded(images):
    """Embed pictures in [0,1], one by one: the mean of each 4x4 cell less one half."""
    cells = np.asarray(images, np.float64).reshape(3, 4, 4, 4, 4).mean((2, 4))
    return cells.ravel() - 0.5


def test_the_scores_agree_with_a_loop_over_blends(setting):
    strip = plugin.parse("detector", "strip:overlays=5,clusters=3,opacity=0.3")
    state = strip.learn(make_pictures(40, 2).images, setting)
    images = make_pictures(6, 1).images
    found = strip.look(images, state, setting).columns
    overlays, centers = state["overlays"].numpy(), state["centers"].double().numpy()
    for row, image in enumerate(images):
        z = [embedded((0.7 * image + 0.3 * other) / 255) for other in overlays]
        pairs = [cosine(z[i], z[j]) for i in range(5) for j in range(5) if i != j]
        assert found["score"][row] == pytest.approx(np.mean(pairs), abs=1e-4)
        logits = np.array([[cosine(each, center) / 0.1 for center in centers] for each in z])
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert found["entropy"][row] == pytest.approx((share * np.log(share)).sum(1).mean(), abs=1e-3)


def test_the_overlays_are_distinct_images_of_those_learned_on(setting):
    images = make_pictures(40, 2).images
    overlays = plugin.parse("detector", "strip").learn(images, setting)["overlays"].numpy()
    rows = [np.flatnonzero((images == overlay).all((1, 2, 3))).tolist() for overlay in overlays]
    assert len({row for (row,) in rows}) == 16
