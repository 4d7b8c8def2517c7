"""Every number that sslbd prints. man/sslbd-metrics.7 is the reference; each definition has a golden test."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

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


def binomial_tail(hits: int, total: int, rate: float) -> float:
    """Return P(X >= hits) for X binomial(total, rate): how surprising this number of flagged images is."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, total, rate))
