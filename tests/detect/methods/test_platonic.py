import numpy as np
import pytest
import torch

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


def test_what_the_reference_tells_linearly_scores_low(setting):
    """The map is exact where the encoder is a linear image of the reference: here, of itself."""
    same = Setting(setting.encoder, setting.session, reference=setting.encoder)
    method = plugin.parse("detector", "platonic:ridge=0.0,components=8")
    learned, images = make_pictures(200, 2).images, make_pictures(20, 1).images
    own = method.look(images, method.learn(learned, same), same).columns["score"]
    other = method.look(images, method.learn(learned, setting), setting).columns["score"]
    assert own.max() < 1e-6 < other.min()


def test_the_map_is_ridge_regression_on_whitened_components(setting):
    method = plugin.parse("detector", "platonic:ridge=0.5,components=6")
    learned = make_pictures(100, 2).images
    state = method.learn(learned, setting)
    ours = np.array([embedded(image / 255) for image in learned])
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    seen = (ours - ours.mean(0)) @ state["whiten"].numpy()
    assert np.allclose(seen.T @ seen / len(seen), np.eye(6), atol=1e-3)
    with torch.no_grad():
        x = torch.nn.functional.normalize(setting.reference(torch.from_numpy(learned)), dim=1).double().numpy()
    x = x - x.mean(0)
    gram = x.T @ x
    expected = np.linalg.inv(gram + 0.5 * np.trace(gram) / len(gram) * np.eye(len(gram))) @ x.T @ seen
    assert np.allclose(state["across"].numpy(), expected, atol=1e-3)
