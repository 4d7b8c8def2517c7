"""Every number that sslbd prints. man/sslbd-metrics.7 is the reference; each definition has a golden test."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from sslbd_cli.errors import InputError

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
WORKING_ASR, LARGEST_DROP = 0.8, 0.03  # an encoder is a victim only if its attack works, so that it can be detected


def quantile(count: int) -> float:
    """Return the two-sided normal quantile for 95 % intervals that hold for `count` shares together (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / count)


def wilson(successes: float, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, of 95 % with the default z; (0, 1) without trials."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = successes / total, z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))  # rounding must not exclude share


def confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Count answers: int64 C,C with true classes in rows and predicted classes in columns."""
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def accuracy(table: np.ndarray) -> tuple[int, int]:
    """Return (correct answers, all answers) of a confusion matrix: CA on clean images, PA on triggered ones."""
    return int(np.trace(table)), int(table.sum())


def false_positives(table: np.ndarray, target: int) -> tuple[int, int]:
    """Return (FP, non-target images): FP is the number of images of other classes that are predicted as the target.

    On triggered images, FP over non-target images is the ASR. (SSL-Backdoor reports FP itself.)
    """
    column = int(table[:, target].sum() - table[target, target])
    return column, int(table.sum() - table[target].sum())


def nfp(table: np.ndarray, target: int) -> float:
    """Return FP of the target over the largest FP of any class (PatchSearch); 0 if no answer is wrong."""
    wrong = table.sum(0) - np.diag(table)
    return float(wrong[target] / wrong.max()) if wrong.max() else 0.0


def share(counts: list[tuple[int, int]], z: float = Z95) -> dict[str, Any]:
    """Summarise (successes, total) of several seeds: mean, Wilson's interval of the mean, spread over seeds."""
    values = [hit / total if total else float("nan") for hit, total in counts]
    mean = float(np.mean(values))
    total = counts[0][1]
    low, high = wilson(mean * total, total, z) if total else (0.0, 1.0)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"value": mean, "low": low, "high": high, "sd": spread, "n": total, "seeds": len(values)}


def attack(clean: list[np.ndarray], triggered: list[np.ndarray], target: int) -> dict[str, Any]:
    """Return PA, ASR, asr_all, FP and NFP from the confusion matrices of each seed, clean and triggered."""
    asr_all = [(int(t[:, target].sum()), int(t.sum())) for t in triggered]
    return {
        "patched_accuracy": share([accuracy(t) for t in triggered]),
        "asr": share([false_positives(t, target) for t in triggered]),
        "asr_all": share(asr_all),
        "fp_clean": float(np.mean([false_positives(c, target)[0] for c in clean])),
        "fp_triggered": float(np.mean([false_positives(t, target)[0] for t in triggered])),
        "nfp": float(np.mean([nfp(t, target) for t in triggered])),
    }


def class_asr(triggered: list[np.ndarray]) -> np.ndarray:
    """Return each class's ASR as if it were the target: float64 C, the mean over seeds."""
    wrong = np.array([table.sum(0) - np.diag(table) for table in triggered])
    others = np.array([table.sum() - table.sum(1) for table in triggered])
    return np.asarray((wrong / np.maximum(others, 1)).mean(0), np.float64)


def rise(clean: list[np.ndarray], triggered: list[np.ndarray]) -> np.ndarray:
    """Return how much the trigger raises each class's share of all answers: float64 C, the mean over seeds."""
    return np.asarray(sum(t.sum(0) - c.sum(0) for c, t in zip(clean, triggered, strict=True)) / sum(map(np.sum, clean)))


def auroc(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Return the area under the ROC curve with its 95 % interval (Hanley and McNeil 1982)."""
    area = float(roc_auc_score(positive, scores))
    hits, others = int(positive.sum()), int((~positive).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (hits - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)) / (hits * others)
    half = Z95 * math.sqrt(max(variance, 0.0))
    return {"value": area, "low": max(0.0, area - half), "high": min(1.0, area + half)}


def tpr_at_fpr(
    scores: np.ndarray, positive: np.ndarray, rates: tuple[float, ...] = (0.01, 0.05, 0.1)
) -> dict[str, float]:
    """Return, per false-positive rate, the largest true-positive rate of a threshold that does not exceed it."""
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)  # dropped points may be the requested ones
    return {f"{rate:.2f}": float(tpr[fpr <= rate].max()) for rate in rates}


def detection(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Return AUROC, average precision and TPR at 1, 5 and 10 % FPR of scores float N with truth bool N."""
    return {
        "auroc": auroc(scores, positive),
        "average_precision": float(average_precision_score(positive, scores)),
        "tpr_at_fpr": tpr_at_fpr(scores, positive),
    }


TOP = (5, 10, 20)  # lengths of the ranking's top; 20 patches train the poison classifier


def top_accuracy(ranking: np.ndarray, positive: np.ndarray, counts: tuple[int, ...] = TOP) -> dict[str, float | None]:
    """Return the share of positives (bool N) in the top of a ranking, per length; None if the ranking is shorter."""
    return {str(k): float(positive[ranking[:k]].mean()) if len(ranking) >= k else None for k in counts}


def removal(flagged: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Return the effect of removing the flagged rows (bool N): removed, recall, precision (None if none is flagged)."""
    hit, removed, total = int((flagged & positive).sum()), int(flagged.sum()), int(positive.sum())
    return {
        "removed": removed,
        "recall": share([(hit, total)]),
        "precision": share([(hit, removed)]) if removed else None,
    }


def localisation(windows: np.ndarray, boxes: np.ndarray) -> dict[str, Any]:
    """Return how well windows int K,4 (x, y, width, height) hit true boxes int K,4; shares are None if K is 0.

    center_hit: the box's centre lies in the window. contained, half_contained: the window holds all, or half the area,
    of the box. iou_half: the intersection is at least half of the union; a window of another size than the box may
    never reach this.
    """
    low = np.maximum(windows[:, :2], boxes[:, :2])
    high = np.minimum(windows[:, :2] + windows[:, 2:], boxes[:, :2] + boxes[:, 2:])
    shared = (high - low).clip(0).prod(1)
    area, union = boxes[:, 2:].prod(1), windows[:, 2:].prod(1) + boxes[:, 2:].prod(1) - shared
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    inside = ((middle >= windows[:, :2]) & (middle <= windows[:, :2] + windows[:, 2:])).all(1)
    kinds = {
        "center_hit": inside,
        "contained": shared >= area,
        "half_contained": 2 * shared >= area,
        "iou_half": 2 * shared >= union,
    }
    counted = {name: share([(int(hits.sum()), len(hits))]) if len(hits) else None for name, hits in kinds.items()}
    return {"n": len(windows)} | counted


def attack_works(asr: float, drop: float) -> bool:
    """Return whether an encoder counts as a victim: the attack works, and clean accuracy is kept."""
    return asr >= WORKING_ASR and drop <= LARGEST_DROP + 1e-9


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


def binomial_tail(hits: int, total: int, rate: float) -> float:
    """Return P(X >= hits) for X binomial(total, rate): how surprising this number of flagged images is."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, total, rate))


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
