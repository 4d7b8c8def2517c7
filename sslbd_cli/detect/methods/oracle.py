"""The upper bound: what a detector that is told the truth finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Oracle(ImageDetector):
    """Flag the images that carry a trigger, told which they are: an upper bound to compare with, not a detector.

    It shows what a perfect answer looks like in the same table: it flags all triggered images, and of the clean inputs
    at most a share of --alpha, because clean scores drawn at random set the threshold.
    """

    judges = "inputs"

    of: str = key("inputs", "what it judges: inputs, with --aux, or samples, a training set",
                  choices=("inputs", "samples"))  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "judges", self.of)

    @property
    def is_bound(self) -> bool:
        return True

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        """Score the images by the truth. Encoder and pixels are not used."""
        assert evidence.boxes is not None
        has_trigger = evidence.boxes[:, 2] > 0
        draws = torch.rand(len(has_trigger), generator=session.generator("oracle"), dtype=torch.float64)
        values = draws.numpy() + has_trigger
        search_space = "nothing: a bound, it is told which images carry a trigger"
        if self.of == "samples":
            return Findings(Scores(values, flagged=np.array(has_trigger)), search_space)
        calm = torch.rand(len(evidence.aux), generator=session.generator("oracle aux"), dtype=torch.float64)
        return Findings(Scores(values, calm.numpy()), search_space)
