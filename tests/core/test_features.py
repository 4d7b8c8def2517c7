"""Neighbours vote, and splits are fair."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslbd_cli.core.device import generator
from sslbd_cli.core.features import knn_predict, split_rows, stratified_rows


def test_neighbours_vote_with_exponential_weights():
    rng = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 5, generator=rng), torch.randn(7, 5, generator=rng)
    labels = torch.arange(40) % 3
    expected = []
    for row in F.normalize(test, dim=1).double():
        cosines = F.normalize(train, dim=1).double() @ row
        votes = np.zeros(3)
        for near in cosines.argsort(descending=True)[:9]:
            votes[labels[near]] += np.exp(cosines[near].item() / 0.1)
        expected.append(int(votes.argmax()))
    assert knn_predict(train, labels, test, 3, k=9).tolist() == expected


def test_more_neighbours_than_rows_are_all_rows():
    train = torch.eye(4)
    assert knn_predict(train, torch.tensor([0, 1, 1, 0]), train, 2, k=200).tolist() == [0, 1, 1, 0]


def test_long_tests_are_answered_in_chunks(monkeypatch):
    from sslbd_cli.core import features

    train, test = torch.randn(20, 4), torch.randn(33, 4)
    whole = knn_predict(train, torch.arange(20) % 2, test, 2, k=3)
    monkeypatch.setattr(features, "CHUNK", 5)
    assert torch.equal(knn_predict(train, torch.arange(20) % 2, test, 2, k=3), whole)


def test_split_rows_holds_out_a_share():
    rest, held = split_rows(50, 0.2, generator(0, "x"))
    assert len(held) == 10 and sorted(torch.cat([rest, held]).tolist()) == list(range(50))
    assert torch.equal(split_rows(50, 0.2, generator(0, "x"))[1], held)
    assert not torch.equal(split_rows(50, 0.2, generator(1, "x"))[1], held)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_stratified_rows_take_their_share_of_every_class(share):
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    rest, held = stratified_rows(labels, share, generator(0, "x"))
    assert sorted(torch.cat([rest, held]).tolist()) == list(range(53))
    counts = labels[held].bincount(minlength=4).tolist()
    assert counts[:3] == [min(n - 1, max(1, round(n * share))) for n in (40, 10, 2)] and counts[3] == 0
