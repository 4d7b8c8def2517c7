"""The floor: what a detector that looks at nothing finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class Random(ImageDetector):
    """Flag a fixed share of the images at random: a floor to compare with, not a detector.

    Its recall is `share` (of inputs: --alpha), and its precision is the rate of poisoned images. It flags as many
    images of a clean set.
    """

    judges = "samples"
    cost = 1
    is_floor = True

    of: str = key("samples", "what it judges: samples, a training set, or inputs, with --aux",
                  choices=("samples", "inputs"))  # fmt: skip
    share: float = key(0.05, "share of the images that is flagged, with of=samples", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "judges", self.of)

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        """Draw the scores at random. Encoder and images are not used."""
        count = len(evidence.images)
        scores = torch.rand(count, generator=session.generator("random detector"), dtype=torch.float64)
        if self.of == "inputs":
            calm = torch.rand(len(evidence.aux), generator=session.generator("random aux"), dtype=torch.float64)
            return Findings(Scores(scores.numpy(), calm.numpy()), "nothing: a floor, scores drawn at random")
        flagged = torch.zeros(count, dtype=torch.bool)
        flagged[scores.argsort(descending=True, stable=True)[: round(self.share * count)]] = True
        return Findings(
            Scores(scores.numpy(), flagged=flagged.numpy(), is_evidence=False),
            search_space=f"nothing: a floor, {self.share:g} of the images flagged at random",
            summary={"share": self.share},
        )
