import numpy as np
import pytest

from planted import Honest, Other, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting


@pytest.fixture
def setting(cpu):
    return Setting(make(Honest), Session(cpu), reference=make(Other))


def embedded(images):
    """Embed pictures in [0,1], one by one: the mean of each 4x4 cell less one half."""
    cells = np.asarray(images, np.float64).reshape(3, 4, 4, 4, 4).mean((2, 4))
    return cells.ravel() - 0.5


@pytest.mark.parametrize("k", [1, 7])
def test_the_score_is_the_distance_to_the_kth_nearest(setting, k):
    method = plugin.parse("detector", f"knn-distance:k={k}")
    learned, images = make_pictures(30, 2).images, make_pictures(6, 1).images
    found = method.look(images, method.learn(learned, setting), setting).columns["score"]
    unit = [z / np.linalg.norm(z) for z in (embedded(image / 255) for image in learned)]
    for score, image in zip(found, images, strict=True):
        z = embedded(image / 255)
        apart = sorted(np.linalg.norm(z / np.linalg.norm(z) - each) for each in unit)
        assert score == pytest.approx(apart[k - 1], abs=1e-4)
