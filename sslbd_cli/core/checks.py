"""Warnings F01...: cases in which the answer of a command may be wrong. man/sslbd-warnings.7 explains each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sslbd_cli.errors import Unsound

if TYPE_CHECKING:
    from torch import Tensor

WARNINGS = {
    "F01": "the loss is not finite: training diverged",
    "F02": "the features collapsed: all images are embedded alike",
    "F03": "the attack hurt the encoder: clean embeddings moved (utility below 0.95)",
    "F04": "the attack did not take: triggered images are not embedded at the reference (effectiveness below 0.95)",
    "F05": "the reference image is not of the target class for a probe on the clean encoder",
    "F06": "the clean encoder already answers to the trigger",
    "F07": "the detector learned nothing: held-out pictures fit their own embeddings no better than others'",
    "F08": "the embeddings are not finite: training diverged, or the weights are damaged",
    "F09": "the trigger draws answers to another class than the target",
}


def finite_loss(terms: dict[str, float], epoch: int, saved_epochs: int) -> None:
    """Raise Unsound (F01) if a loss term is not finite.

    saved_epochs: the number of epochs that the checkpoint holds, 0 without a checkpoint.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if bad:
        last = "the epoch before" if saved_epochs == epoch else f"epoch {saved_epochs}"
        advice = f"; the checkpoint holds {last}" if saved_epochs else ""
        raise Unsound(f"F01 {WARNINGS['F01']} in epoch {epoch + 1} ({', '.join(bad)}); lower the learning rate{advice}")


def finite_features(feats: Tensor) -> None:
    """Raise Unsound (F08) if features N,D hold NaN or infinity."""
    if not bool(feats.isfinite().all()):
        raise Unsound(f"F08 {WARNINGS['F08']}; lower the learning rate of the training that made them")


def spread(feats: Tensor) -> float:
    """Return the mean standard deviation per dimension of unit features N,D, times sqrt(D). 0 means collapse."""
    unit = feats / feats.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return float(unit.std(0).mean() * feats.shape[1] ** 0.5)


def collapsed(feats: Tensor) -> bool:
    """Return whether features N,D are (nearly) constant."""
    return spread(feats) < 0.02


def not_collapsed(feats: Tensor) -> None:
    """Raise Unsound (F02) if features N,D are (nearly) constant."""
    if collapsed(feats):
        raise Unsound(
            f"F02 {WARNINGS['F02']} (spread {spread(feats):.4f}); lower the learning rate or add warm-up;"
            " a --checkpoint holds the last sound epoch"
        )


def answers_already(asr: dict[str, float], classes: int) -> str | None:
    """Return a warning (F06) if the low end of a clean encoder's ASR is above twice the share of one class, or None."""
    if asr["low"] <= max(0.2, 2 / classes):
        return None
    return f"F06 {WARNINGS['F06']}: ASR {asr['value']:.3f} on --baseline, so the attack's own share is the lift"
