"""The nearest-neighbour probe reports the number of neighbours that it asked."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.features import Labelled


@pytest.mark.parametrize(("spec", "used"), [("knn:k=5", 5), ("knn:k=200", 12), ("knn", {1, 5, 12})])
def test_it_reports_the_neighbours_that_voted(spec, used):
    feats, labels = torch.eye(12), torch.arange(12) % 2
    train, valid = Labelled(feats[:9], labels[:9]), Labelled(feats[9:], labels[9:])
    k = plugin.parse("head", spec).fit(train, valid, 2, 0).chosen["k"]
    assert k in used if isinstance(used, set) else k == used
