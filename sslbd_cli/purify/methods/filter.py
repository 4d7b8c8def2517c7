"""Filter a training set by a detection report, as every defence does that finds poisoned images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.purify.contract import DatasetPurifier


@dataclass(frozen=True, kw_only=True)
class Filter(DatasetPurifier):
    """Remove the images of a dataset that a detection report flags; train on the rest (PatchSearch, PoisonCAM).

    --keep-quantile Q ignores the flags and keeps the share Q of least suspicious images; on ties, the first ones.
    """

    def keep(self, scores: np.ndarray, flagged: np.ndarray, quantile: float | None) -> np.ndarray:
        if quantile is None:
            return ~flagged
        remaining = np.zeros(len(scores), bool)
        remaining[np.argsort(scores, kind="stable")[: round(quantile * len(scores))]] = True
        return remaining
