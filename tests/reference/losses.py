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


def mean_shift(queries: np.ndarray, targets: np.ndarray, bank: np.ndarray, k: int) -> float:
    """MSF, equation 1: the mean squared distance of each unit query to the k rows of the bank nearest its target."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2))

    total = 0.0
    for query, target in zip(queries, targets, strict=True):
        nearest = sorted(bank, key=lambda row, target=target: distance(target, row))[:k]
        total += sum(distance(query, row) for row in nearest) / k
    return total / len(queries)


def barlow_twins(first: np.ndarray, second: np.ndarray, weight: float) -> float:
    """Barlow Twins, equations 1 and 2: correlations over the batch, plus batch norm's 1e-5 under the root."""
    count, total = len(first), 0.0
    columns = []
    for z in (first, second):
        means = [sum(column) / count for column in z.T]
        roots = [math.sqrt(sum((column - m) ** 2) / count + 1e-5) for column, m in zip(z.T, means, strict=True)]
        columns.append([(column - m) / root for column, m, root in zip(z.T, means, roots, strict=True)])
    for i, one in enumerate(columns[0]):
        for j, two in enumerate(columns[1]):
            correlation = float(np.dot(one, two)) / count
            total += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return total


def vicreg(first: np.ndarray, second: np.ndarray, invariance: float, variance: float, covariance: float) -> float:
    """VICReg, equations 1 to 6, with the variance and covariance terms summed over the views and s per element."""
    count, width = first.shape
    total = invariance * float(np.sum((first - second) ** 2)) / (count * width)
    for z in (first, second):
        away = [column - sum(column) / count for column in z.T]
        spread = [math.sqrt(float(np.dot(column, column)) / (count - 1) + 1e-4) for column in away]
        total += variance * sum(max(0.0, 1 - deviation) for deviation in spread) / width
        squares = [
            (float(np.dot(one, two)) / (count - 1)) ** 2
            for i, one in enumerate(away)
            for j, two in enumerate(away)
            if i != j
        ]
        total += covariance * sum(squares) / width
    return total


def dino(
    students: list[np.ndarray], teachers: list[np.ndarray], centre: np.ndarray, student_t: float, teacher_t: float
) -> float:
    """DINO, equation 3 and algorithm 1: cross-entropy of each view's student under the other view's teacher."""

    def shares(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    total = 0.0
    for taught, learned in ((teachers[1], students[0]), (teachers[0], students[1])):
        for t, s in zip(taught, learned, strict=True):
            total -= float(np.sum(shares((t - centre) / teacher_t) * np.log(shares(s / student_t))))
    return total / (2 * len(students[0]))


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


def clip(images: np.ndarray, texts: np.ndarray, scale: float, shares: np.ndarray | None = None) -> float:
    """CLIP, figure 3: the mean of both directions' cross-entropies; shares N,N say which pairs belong together."""
    count = len(images)
    shares = np.eye(count) if shares is None else shares
    total = 0.0
    for one, other, wanted in ((images, texts, shares), (texts, images, shares.T)):
        for anchor, row in zip(one, wanted, strict=True):
            weights = [math.exp(scale * cosine(anchor, candidate)) for candidate in other]
            total -= sum(w * math.log(x / sum(weights)) for w, x in zip(row, weights, strict=True) if w)
    return total / (2 * count)


def cross_entropy(logits: np.ndarray, wanted: list[int]) -> float:
    """The mean of -log softmax at the wanted class."""
    total = 0.0
    for row, label in zip(logits, wanted, strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))
    return total / len(wanted)


def masked_patches(images: np.ndarray, painted: np.ndarray, visible: list[list[int]], patch: int) -> float:
    """MAE, section 3: mean squared error on hidden patches, each normalised by its own mean and deviation."""
    across = images.shape[-1] // patch
    errors = []
    for image, guesses, seen in zip(images, painted, visible, strict=True):
        for number in set(range(across * across)) - set(seen):
            top, left = patch * (number // across), patch * (number % across)
            pixels = image[:, top : top + patch, left : left + patch].ravel()  # channel by channel
            goal = (pixels - np.mean(pixels)) / math.sqrt(np.var(pixels, ddof=1) + 1e-6)
            errors.append(float(np.mean((guesses[number] - goal) ** 2)))
    return sum(errors) / len(errors)
