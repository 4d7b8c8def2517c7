"""Where a falling curve bends: the number of clusters beyond which more of them explain little more."""

from __future__ import annotations

import numpy as np


def knee(numbers: np.ndarray, errors: np.ndarray, window: int = 3) -> int:
    """Return the index of the knee of errors float N at ascending numbers float N (Kneedle, Satopaa et al. 2011).

    The curve is smoothed by a sliding mean (at its ends over what there is), both axes are brought to [0,1], and the
    knee is the point farthest below the chord from first to last. A curve that does not fall has its knee at the first.
    """
    half = window // 2
    smooth = np.array([errors[max(0, i - half) : i + half + 1].mean() for i in range(len(errors))])
    smooth[[0, -1]] = errors[[0, -1]]  # the chord joins the ends as they are
    x = (numbers - numbers[0]) / max(numbers[-1] - numbers[0], 1e-12)
    fall = smooth[0] - smooth[-1]
    if fall <= 0:
        return 0
    return int(np.argmax(1 - x - (smooth - smooth[-1]) / fall))
