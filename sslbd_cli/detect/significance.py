"""How unusual a score or a count is among clean ones: conformal p-values, tails, and their correction."""

from __future__ import annotations

import math

import numpy as np

from sslbd_cli.errors import InputError


def conformal(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return conformal p-values (1 + #{calibration >= s}) / (n + 1), float N. Small values are suspicious."""
    ordered = np.sort(calibration)
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p: np.ndarray = (1 + above) / (len(ordered) + 1)
    return p


def least_calibration(alpha: float) -> int:
    """Return the number of calibration scores that a p-value of alpha needs: the least n with 1 / (n + 1) <= alpha.

    Raises InputError if alpha is not a sensible false-positive rate.
    """
    if not 1e-9 <= alpha <= 0.5:  # also true for NaN
        raise InputError(f"--alpha {alpha:g}: expected a share from 1e-9 to 0.5")
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_threshold(calibration: np.ndarray, alpha: float) -> float:
    """Return the score above which the conformal p-value is at most alpha. Needs at least 1/alpha - 1 scores."""
    allowed = _allowed(len(calibration), alpha)
    return float(np.sort(calibration)[len(calibration) - allowed])


def exceedance_tail(hits: int, total: int, calibration: int, alpha: float) -> float:
    """Return P(X >= hits), X the number of `total` images flagged at alpha if all are like the calibration images.

    One threshold from n calibration scores serves all images, so X is not binomial, but beta-binomial with parameters k
    and n + 1 - k, k = floor(alpha (n + 1)); this includes the randomness of the threshold.
    """
    from scipy.stats import betabinom

    allowed = _allowed(calibration, alpha)
    return float(min(1.0, betabinom.sf(hits - 1, total, allowed, calibration + 1 - allowed)))


def holm(p_values: list[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), so that the family-wise error rate stays at the level.

    The k-th smallest of m is multiplied by m - k + 1, and raised to the one before if smaller. They may be dependent.
    """
    order, adjusted, least = np.argsort(p_values, kind="stable"), [1.0] * len(p_values), 0.0
    for rank, at in enumerate(order.tolist()):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def _allowed(calibration: int, alpha: float) -> int:
    """Return floor(alpha (n + 1)), the threshold's rank from above. Raises ValueError if it is below 1."""
    allowed = math.floor(alpha * (calibration + 1) + 1e-9)
    if not 0 < allowed <= calibration:
        raise ValueError(f"alpha {alpha} needs more than {calibration} calibration scores")
    return allowed


def rank_tail(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that chance ranks positives (bool N) this high or higher (Mann and Whitney 1947, exact).

    Unlike the interval of the AUROC, it is valid for a handful of scores. Ties use the normal approximation.
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(scores[positive], scores[~positive], alternative="greater").pvalue)


def outlying_tail(differences: np.ndarray) -> float:
    """Return the p-value of one value above K draws from a normal distribution, by differences float64 K,N to each.

    The N columns are images. The draws' spread is that of the means over images. It counts at least as much as the
    images' own noise in the mean, so that equal draws do not make a small difference significant. Student's t has
    K - 1 degrees of freedom, and the variance counts 1 + 1/K times, for the new value and the draws' mean.
    """
    from scipy.stats import t

    means, count = differences.mean(1), len(differences)
    noise = differences.mean(0).var(ddof=min(1, differences.shape[1] - 1)) / differences.shape[1]
    spread = max(float(means.var(ddof=1)), float(noise))
    if spread == 0:
        return 0.0 if means.mean() > 0 else 1.0
    return float(t.sf(means.mean() / math.sqrt(spread * (1 + 1 / count)), count - 1))
