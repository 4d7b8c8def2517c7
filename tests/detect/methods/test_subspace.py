"""Subspace detection: samples by the text, scores by hand, and images that leave their class's texts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detect.methods.test_bdetclip import stamped
from planted import Firm, Honest, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting
from sslbd_cli.errors import InputError
from worded import worded


@pytest.fixture
def lines(tmp_path):
    rows = [
        f"{name}\t{text}"
        for name in ("cat", "dog", "ship")
        for text in (f"a {name}", f"the {name}", f"one {name} here")
    ]
    (tmp_path / "lines").write_text("\n".join(rows))
    return tmp_path / "lines"


def learned(kind, lines, cpu, **keys):
    text = ",".join(f"{key}={value}" for key, value in {"prompts": lines, **keys}.items())
    detector, setting = plugin.parse("detector", f"subspace:{text}"), Setting(worded(make(kind)), Session(cpu))
    return detector, detector.learn(make_pictures(4, 1).images, setting), setting


def test_samples_lie_beyond_the_variants_in_the_texts_space(lines, cpu):
    detector, state, setting = learned(Honest, lines, cpu, samples=6)
    assert state["samples"].shape == (3, 6, 48) and state["plain"].shape == (3, 48)
    tower = setting.encoder.parts["text"]
    texts = F.normalize(tower(torch.from_numpy(tower.tokenise(["a cat", "the cat", "one cat here"]).ids)), dim=1)
    span = torch.cat([texts - texts.mean(0)])
    directions = torch.linalg.svd(span, full_matrices=False).Vh
    apart = state["samples"][0] - texts.mean(0)
    inside = apart @ directions[:2].T @ directions[:2]
    assert torch.allclose(inside, apart, atol=1e-4)
    assert torch.equal(detector.learn(None, setting)["samples"], state["samples"])


@torch.no_grad()
def test_the_score_is_the_mean_squared_distance_from_the_nearest_classs_samples(lines, cpu):
    detector, state, setting = learned(Honest, lines, cpu)
    images = make_pictures(5, 3).images
    vectors = F.normalize(setting.encoder(torch.from_numpy(images)), dim=1)
    expected = []
    for vector in vectors:
        at = int((state["plain"] @ vector).argmax())
        expected.append(float((state["samples"][at] - vector).square().sum(1).mean()))
    assert np.allclose(detector.look(images, state, setting).score, expected, atol=1e-5)


def test_images_at_a_distant_picture_are_suspicious_and_not_through_a_clean_encoder(lines, cpu):
    areas = []
    for kind in (Firm, Honest):
        detector, state, setting = learned(kind, lines, cpu)
        images = make_pictures(60, 2).images
        target = F.normalize(make(Firm)(torch.from_numpy(stamped(images[:1]))), dim=1)
        state["samples"], state["plain"] = -target.expand(3, 15, -1).clone(), -target.expand(3, -1).clone()
        scores = detector.look(np.concatenate([images, stamped(images)]), state, setting).score
        areas.append(auroc(scores, np.arange(120) >= 60)["value"])
    assert areas[0] > 0.95 and areas[1] < 0.8


def test_classes_need_two_texts(tmp_path, cpu):
    (tmp_path / "lines").write_text("cat\ta cat\ndog\ta dog\n")
    with pytest.raises(InputError, match="2 or more for each class"):
        learned(Honest, tmp_path / "lines", cpu)
