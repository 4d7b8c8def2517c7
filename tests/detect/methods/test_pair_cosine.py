"""Detectors of poisoned pairs: captions that do not belong to their images."""

import numpy as np
import pytest
import torch
from torch import nn

from sslbd_cli import plugin
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.errors import InputError
from wired import make_scenes, make_wired
from worded import NAMES, captions_for, worded


class Dictionary(nn.Module):
    """Embed a caption as the mean of its class's images."""

    def __init__(self, net, labels: np.ndarray, images: np.ndarray) -> None:
        super().__init__()
        feats = net(torch.from_numpy(images)).detach()
        self.means = torch.stack([feats[labels == label].mean(0) for label in range(labels.max() + 1)])
        texts = [f"a photo of a {name}" for name in NAMES[: len(self.means)]]
        self.known = {row.tobytes(): at for at, row in enumerate(net.parts["text"].tokenise(texts).ids)}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.means[[self.known.get(row.astype(np.int32).tobytes(), 0) for row in ids.numpy()]]


@pytest.fixture
def net():
    data, made = make_scenes(200, seed=5), worded(make_wired(backdoor=False))
    made.parts["text"].tower = Dictionary(made, data.labels, data.images)
    return made


@pytest.mark.parametrize("spec", ["pair-cosine", "local-outlier:of=pairs,score=distance,k=4"])
def test_wrong_captions_rank_above_right_ones(spec, net, cpu):
    data = make_scenes(160)
    labels, wrong = data.labels.copy(), np.random.default_rng(0).permutation(160)[:12]
    labels[wrong] = (labels[wrong] + 1) % (labels.max() + 1)
    evidence = Evidence(data.images, captions=captions_for(labels))
    found = plugin.parse("detector", spec).run(net, evidence, Session(cpu)).scores
    assert auroc(found.values, np.isin(np.arange(160), wrong))["value"] > 0.95
    right = Evidence(data.images, captions=captions_for(data.labels))
    control = plugin.parse("detector", spec).run(net, right, Session(cpu)).scores
    assert auroc(control.values, np.isin(np.arange(160), wrong))["value"] < 0.75


def test_captions_are_needed(net, cpu):
    with pytest.raises(InputError, match="have no captions"):
        plugin.parse("detector", "pair-cosine").run(net, Evidence(make_scenes(20).images), Session(cpu))
