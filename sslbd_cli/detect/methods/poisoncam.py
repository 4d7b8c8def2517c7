"""PoisonCAM (Qian et al., arXiv 2312.07955): masking the trigger changes the activation of the image's cluster."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.detect.patch_scan.scan import PatchScan
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PoisonCAM(PatchScan):
    """Find poisoned training images by masks that change their cluster's activation (PoisonCAM, arXiv 2312.07955).

    No code was released and the text names no settings, so all of this is our reconstruction. The activation is the
    cosine with the own cluster's center; the window is where a square mask, of the images' mean colour, lowers it most,
    beside what the same mask does to other images. Candidates, flip test, schedule and poison classifier are those of
    patchsearch. What the classifier sees is then verified (decision=verified): the window that draws the image to the
    triggers' clusters is pasted on other images, and must carry a seventh as many of them there as the triggers do
    (windows of clean images carried a tenth at most).
    """

    localiser: str = key("mask", "how a window is chosen; oracle is told and random knows nothing: bounds",
                         choices=("cam", "mask", "rise", "oracle", "random"))  # fmt: skip
    window: float = key(0.3, "side of the window: pixels, below 1 a share of the image's", low=0.01)
    decision: str = key("verified", "what is flagged: all that the classifier says, or what also flips (verified)",
                        choices=("classifier", "verified"))  # fmt: skip
