"""The tool says when its own answer may be wrong."""

import pytest
import torch

from sslbd_cli.core import checks
from sslbd_cli.errors import Unsound


def test_finite_terms_pass_and_others_are_named():
    checks.finite_loss({"loss": 1.0, "utility": -1.0}, 0, 0)
    with pytest.raises(Unsound, match=r"^F01 .* in epoch 3 \(b, c\); lower the learning rate$"):
        checks.finite_loss({"a": 1.0, "b": float("nan"), "c": float("inf")}, 2, 0)
    with pytest.raises(Unsound, match=r"epoch 3 \(b\); lower the learning rate; the checkpoint holds epoch 1$"):
        checks.finite_loss({"b": float("nan")}, 2, 1)


def test_spread_is_one_for_uniform_directions_and_zero_for_one():
    uniform = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    assert checks.spread(uniform) == pytest.approx(1, abs=0.02)
    assert checks.spread(torch.ones(10, 64)) == pytest.approx(0, abs=1e-6)
    assert checks.spread(torch.zeros(10, 64)) == 0
    checks.not_collapsed(uniform)


def test_collapsed_features_are_unsound():
    with pytest.raises(Unsound, match=r"^F02 "):
        checks.not_collapsed(torch.ones(10, 8) + 0.001 * torch.randn(10, 8))


def test_features_that_are_not_finite_are_unsound():
    checks.finite_features(torch.zeros(3, 2))
    for value in (float("nan"), float("inf")):
        with pytest.raises(Unsound, match="not finite"):
            checks.finite_features(torch.tensor([[1.0, value]]))


def test_a_clean_encoder_that_answers_to_the_trigger_is_flagged():
    assert checks.answers_already({"value": 0.25, "low": 0.19}, classes=10) is None
    assert checks.answers_already({"value": 0.55, "low": 0.45}, classes=4) is None  # two classes of four
    assert str(checks.answers_already({"value": 0.4, "low": 0.3}, classes=10)).startswith("F06 ")
