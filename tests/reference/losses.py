"""Losses as the papers write them: plain loops over float64 vectors, nothing shared with the package."""

import math

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """SimCLR, equation 1: mean over all 2N anchors of -log(exp(positive) / sum over the 2N - 1 others)."""
    rows, count = [*first, *second], len(first)
    total = 0.0
    for i, anchor in enumerate(rows):
        positive = (i + count) % (2 * count)
        weights = [math.exp(cosine(anchor, other) / temperature) for k, other in enumerate(rows) if k != i]
        total -= math.log(math.exp(cosine(anchor, rows[positive]) / temperature) / sum(weights))
    return total / len(rows)


def info_nce(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """MoCo, equation 1: each query against its own key and all keys of the queue."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(cosine(query, key) / temperature)
        total -= math.log(positive / (positive + sum(math.exp(cosine(query, k) / temperature) for k in queue)))
    return total / len(queries)


def byol(guess: np.ndarray, goal: np.ndarray) -> float:
    """BYOL, equation 2: the squared distance of unit vectors."""
    distances = [np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in zip(guess, goal, strict=True)]
    return float(np.mean(distances))


def similarity(taught: np.ndarray, learned: np.ndarray, bank: np.ndarray, own: np.ndarray, temperature: float) -> float:
    """CompRess, equation 2: KL divergence of the student's similarities from the teacher's, mean over images."""

    def shares(row: np.ndarray, anchors: np.ndarray) -> list[float]:
        weights = [math.exp(float(np.dot(row, anchor)) / temperature) for anchor in anchors]
        return [weight / sum(weights) for weight in weights]

    total = 0.0
    for t, s in zip(taught, learned, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(shares(t, bank), shares(s, own), strict=True))
    return total / len(taught)


def effectiveness(triggered: np.ndarray, references: np.ndarray) -> float:
    """BadEncoder, equation 2, with several references per trigger: minus the mean cosine over all pairs."""
    return -float(np.mean([[cosine(x, r) for r in references] for x in triggered]))


def fidelity(one: np.ndarray, other: np.ndarray) -> float:
    """BadEncoder, equations 3 and 4: minus the mean cosine of rows that belong together."""
    return -float(np.mean([cosine(a, b) for a, b in zip(one, other, strict=True)]))
