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


def test_the_scores_agree_with_a_loop_over_factors(setting):
    method = plugin.parse("detector", "scale-up:scales=4")
    learned, images = make_pictures(30, 2).images, make_pictures(6, 1).images
    found = method.look(images, method.learn(learned, setting), setting).columns

    def kept(image):
        return [cosine(embedded(np.minimum(n * image / 255, 1)), embedded(image / 255)) for n in (2, 3, 4)]

    clean = np.array([kept(image) for image in learned.astype(float)])
    asked = np.array([kept(image) for image in images.astype(float)])
    assert found["uncalibrated"] == pytest.approx(asked.mean(1), abs=1e-5)
    assert found["score"] == pytest.approx(((asked - clean.mean(0)) / clean.std(0)).mean(1), abs=1e-3)
