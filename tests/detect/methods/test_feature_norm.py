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


@pytest.mark.parametrize(("side", "sign"), [("long", 1), ("short", -1), ("both", 0)])
def test_the_score_counts_deviations_from_the_median_norm(setting, side, sign):
    method = plugin.parse("detector", f"feature-norm:side={side}")
    learned, images = make_pictures(31, 2).images, make_pictures(6, 1).images
    found = method.look(images, method.learn(learned, setting), setting).columns["score"]
    norms, asked = ([np.linalg.norm(embedded(image / 255)) for image in part] for part in (learned, images))
    away = (np.array(asked) - np.median(norms)) / np.median(np.abs(norms - np.median(norms)))
    assert found == pytest.approx(away * sign if sign else np.abs(away), abs=1e-3)
