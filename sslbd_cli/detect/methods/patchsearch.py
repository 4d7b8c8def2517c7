"""PatchSearch (Tejankar et al., CVPR 2023): Grad-CAM finds candidate triggers, a classifier what carries them."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.detect.patch_scan.scan import PatchScan
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PatchSearch(PatchScan):
    """Find poisoned training images by patches that flip others' clusters, by Grad-CAM (PatchSearch, CVPR 2023).

    Images are clustered by the suspicious encoder's unit features. In a few images of each cluster the window of the
    brightest Grad-CAM is cut out and pasted on images of all clusters: its score is the share that it brings into the
    image's own cluster. Clusters whose patches bring little are dropped round by round. The best patches teach a
    classifier, which flags. compat=authors reproduces two faults of the released code: patched features are compared
    with the centers at their own length, which favours tight clusters, and on vision transformers the cluster head is
    never called, so that Grad-CAM explains the largest number of the embedding. Unlike there, patches below `capture`
    teach nothing, so that `nothing found` is an answer; classifiers train for a fixed number of steps; ties are drawn.
    """

    localiser: str = key("cam", "how a window is chosen; oracle is told and random knows nothing: bounds",
                         choices=("cam", "mask", "rise", "oracle", "random"))  # fmt: skip
    window: float = key(0.268, "side of the window: pixels, below 1 a share of the image's (60 of 224)", low=0.01)
    decision: str = key("classifier", "what is flagged: all that the classifier says, or what also flips (verified)",
                        choices=("classifier", "verified"))  # fmt: skip
