"""PatchSearch (Tejankar et al., CVPR 2023): Grad-CAM finds candidate triggers, a classifier the images with them."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.detect.patch_scan.scan import PatchScan
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PatchSearch(PatchScan):
    """Find poisoned training images by patches that move other images into their cluster (PatchSearch, CVPR 2023).

    Images are clustered by unit features of the suspicious encoder. In a few images of each cluster, the window of the
    brightest Grad-CAM is cut out and pasted on images of all clusters. Its score is the share of these that it moves
    into the cluster of its image. Clusters of low scores are dropped round by round. The best patches train a
    classifier, which flags images. compat=authors reproduces two faults of the released code. It compares patched
    features of any length with the centers, which favours tight clusters. On vision transformers it never calls the
    cluster head, so that Grad-CAM explains the largest number of the embedding. Unlike in the released code, patches
    below `capture` train no classifier, so that `nothing found` is an answer; classifiers train for a fixed number of
    steps; ties are broken at random.
    """

    localiser: str = key("cam", "how a window is chosen; oracle (knows the truth) and random are bounds",
                         choices=("cam", "mask", "rise", "oracle", "random"))  # fmt: skip
    window: float = key(0.268, "side of the window in pixels; below 1, a share of the image's (60 of 224)", low=0.01)
    decision: str = key("classifier", "flag what the classifier finds; verified: only if its window moves other images",
                        choices=("classifier", "verified"))  # fmt: skip
