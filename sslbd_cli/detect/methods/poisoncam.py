"""PoisonCAM (Qian et al., arXiv 2312.07955): masking the trigger changes the activation of the image's cluster."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.detect.patch_scan.scan import PatchScan
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PoisonCAM(PatchScan):
    """Find poisoned training images by masks that change their cluster's activation (PoisonCAM, arXiv 2312.07955).

    No code was released and the paper names no settings, so all of this is our reconstruction. The activation is the
    cosine with the center of the image's own cluster. The window is where a square mask, in the mean colour of the
    images, lowers it most, compared with the same mask on other images. Candidates, flip test, schedule and poison
    classifier are those of patchsearch. decision=verified then tests the images that the classifier flags. The window
    that draws the image to the triggers' clusters is pasted on other images. It must move a seventh as many of them
    there as the triggers do (windows of clean images moved a tenth at most).
    """

    localiser: str = key("mask", "how a window is chosen; oracle (knows the truth) and random are bounds",
                         choices=("cam", "mask", "rise", "oracle", "random"))  # fmt: skip
    window: float = key(0.3, "side of the window in pixels; below 1, a share of the image's", low=0.01)
    decision: str = key("verified", "flag what the classifier finds; verified: only if its window moves other images",
                        choices=("classifier", "verified"))  # fmt: skip
