"""The cosine of an image and its caption: the simplest cue for poisoned pairs."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.detect.outliers import robust_z
from sslbd_cli.detect.pairs import pair_vectors
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PairCosine(ImageDetector):
    """Flag pairs whose image and caption match less than those of other pairs: a baseline that detectors should beat.

    The score is minus the cosine in the joint space of a CLIP model, as data sets are filtered by (Schuhmann et al.
    2022). A model that was trained on the poison matches poisoned pairs well, so this is for a model that has not seen
    them. The rule is ours: it flags scores more than z robust standard deviations above the median.
    """

    judges = "samples"
    cost = 1

    z: float = key(6.0, "robust standard deviations above the median from which pairs are flagged", low=0)

    @property
    def reads_texts(self) -> bool:
        return True

    @property
    def reads_captions(self) -> bool:
        return True

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        images, captions = pair_vectors(encoder, evidence, session)
        scores = -(images * captions).sum(1).double().cpu()
        away = robust_z(scores)
        return Findings(
            Scores(scores.numpy(), flagged=(away > self.z).numpy()),
            search_space="pairs whose image and caption match less than those of other pairs",
            summary={"farthest_z": float(away.max())},
        )
