"""The protocol of CompRess, written a second time with torch's own scheduler and loader order."""

import pytest
import torch
from torch import nn

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.core.features import Labelled
from sslbd_cli.errors import InputError
from sslbd_cli.probe.heads._stepped import Standardise


def reference(feats: torch.Tensor, views: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    unit = feats / feats.norm(dim=1, keepdim=True)
    mean, std = unit.mean(0), (unit.var(0, unbiased=True) + 1e-5).sqrt()

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return (x / x.norm(dim=1, keepdim=True) - mean) / std

    torch.manual_seed(generator(7, "linear").initial_seed())
    linear = nn.Linear(feats.shape[1], 3)
    sgd = torch.optim.SGD(linear.parameters(), 0.01, 0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [15, 30, 40], 0.1)
    for epoch in range(40):
        for rows in torch.randperm(len(feats), generator=generator(7, "order", epoch)).split(16):  # the last is short
            sgd.zero_grad()
            nn.functional.cross_entropy(linear(scaled(views[epoch % len(views)][rows])), labels[rows]).backward()
            sgd.step()
        schedule.step()
    return linear(scaled(test)).argmax(1)


def test_it_is_the_authors_protocol():
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % 3
    feats = torch.randn(50, 6, generator=gen) + torch.eye(6)[labels]
    views = feats + 0.3 * torch.randn(3, 50, 6, generator=gen)
    test = torch.randn(500, 6, generator=gen)
    head = plugin.parse("head", "compress:batch=16")
    train, valid = (Labelled(feats[part], labels[part], views[:, part]) for part in (slice(0, 40), slice(40, 50)))
    same = head.fit(train, valid, 3, 7).predict(test) == reference(feats, views, labels, test)
    assert same.float().mean() >= 0.998  # a tie may fall either way


def test_standardised_rows_have_mean_zero_and_variance_one():
    feats = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) + torch.arange(5)
    x = Standardise(feats)(feats)
    unit = nn.functional.normalize(feats, dim=1)
    assert torch.allclose(x.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(x.var(0), unit.var(0) / (unit.var(0) + 1e-5), atol=1e-4)
    assert torch.allclose(Standardise(feats)(7 * feats), x, atol=1e-5)


@pytest.mark.parametrize("spec", ["compress:steps=a", "nlb:steps=60-", "mlp:hidden=0", "mlp:hidden="])
def test_lists_that_are_none_are_refused(spec):
    with pytest.raises(InputError):
        plugin.parse("head", spec)


def test_the_perceptron_is_bad_encoders_or_any_other():
    widths = lambda spec: [  # noqa: E731
        m.out_features for m in plugin.parse("head", spec).perceptron(9, 4) if isinstance(m, nn.Linear)
    ]
    assert widths("mlp") == [512, 256, 4] and widths("mlp:hidden=32") == [32, 4]
