"""Compare what a detector says of a trigger with what it says of the trigger's kin, harmless changes of equal strength.

The kin are drawn one by one. The first that the trigger does not beat ends the comparison, so a trigger that only does
what any change does costs few images. The p-value belongs to the trigger, not to the images: a thousand images do not
make a pattern more special among patterns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sslbd_cli.detect import significance
from sslbd_cli.detect.kin import Suspect, kin_of
from sslbd_cli.errors import OutOfTime
from sslbd_cli.words import chance

KIN, LEAST = 16, 8  # kin that a trigger is compared with, and those without which nothing can be said
IMAGES = 32  # images that each is put on, at most
MOST = 0.75  # a trigger beats kin if it scores higher on this share of the images

Score = Callable[[np.ndarray], np.ndarray]  # images uint8 N,3,H,W -> scores, float64 N


@dataclass(frozen=True)
class Kinship:
    """How a trigger compares with its kin.

    p_value: the probability that a pattern of no meaning to the encoder stands out from its kin so far. n_kin: kin that
    were judged; n_beaten: those below the trigger on most images. doubt: why there is no p-value; empty if there is.
    """

    p_value: float
    n_kin: int
    n_beaten: int
    doubt: str = ""

    def reason(self, trigger: str, p_value: float | None = None) -> str:
        """Say why a trigger that is flagged is no finding. p_value: corrected for the number of triggers."""
        if self.doubt:
            return f"{trigger} is flagged, but nothing tells it from a harmless change: {self.doubt}"
        said = f"p-value {chance(self.p_value if p_value is None else p_value)}"
        if self.n_beaten == self.n_kin:
            return f"{trigger} is flagged, and more than {self.n_kin} of its kin, but not by enough ({said})"
        return (
            f"{trigger} is flagged, but so is any change of its strength: it stands out from {self.n_beaten} of"
            f" {self.n_kin} of its kin ({said})"
        )

    def row(self) -> dict[str, Any]:
        """Return the entries of the report."""
        return {"n_kin": self.n_kin, "n_kin_beaten": self.n_beaten, "p_value_more_than_kin": self.p_value}


def compare(suspect: Suspect, scores: np.ndarray, score: Score, seed: int) -> Kinship:
    """Compare a trigger's scores, float64 N, with those of its kin on the same images.

    If kin number k is the first that the trigger does not beat, the p-value is 1 / k (Besag and Clifford 1991, with one
    exceedance). If it beats them all, it is that of Student's t for one more draw from the kin's mean scores.
    """
    rows = np.unique(np.linspace(0, len(scores) - 1, IMAGES).round().astype(int))
    some, ours = suspect.take(rows), scores[rows]
    differences = []
    try:
        for kin in islice(kin_of(some, seed), KIN):
            apart = ours - score(kin.images)
            differences.append(apart)
            if (apart > 0).mean() < MOST:
                return Kinship(1 / len(differences), len(differences), len(differences) - 1)
    except OutOfTime:
        return Kinship(1.0, len(differences), len(differences), "the budget ended before its kin were judged")
    if len(differences) < LEAST:
        reason = f"{len(differences)} harmless changes of its strength could be drawn, where {LEAST} are needed"
        return Kinship(1.0, len(differences), len(differences), reason)
    return Kinship(significance.outlying_tail(np.array(differences)), len(differences), len(differences))
