"""The contract of detectors, and what those of images are given and say; core/audit.py has that of encoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from sslbd_cli.core.device import Device
from sslbd_cli.core.plugin import Plugin

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.core.train import Watch


@dataclass(frozen=True, kw_only=True)
class Detector(Plugin):
    """Base of `detect --method`. Higher is more suspicious. Blind to truth and history by construction.

    What it judges says which of its two kinds it is: ImageDetector below, or EncoderDetector in core/audit.py.
    """

    shelf: ClassVar[str] = "detector"
    #: inputs: images that the encoder may be given, judged against others held to be clean (`evidence.aux`);
    #: samples: the images that it was trained on, judged among themselves, with no clean one at hand;
    #: encoder: the encoder itself, by clean images and, where there are any, encoders known to be clean.
    flags: ClassVar[Literal["encoder", "inputs", "samples"]]
    #: rough cost, by which `--method all` orders detectors: 1 embeds the images once, 10 trains on what was embedded,
    #: 100 goes through the encoder at every step of a search or of a training.
    cost: ClassVar[float] = 10
    is_floor: ClassVar[bool] = False  # whether it looks at nothing: no detector, but what chance would find

    @property
    def is_bound(self) -> bool:
        """Whether it is told where the triggers are: not a detector, but what one could reach at best."""
        return False


@dataclass(frozen=True, kw_only=True)
class ImageDetector(Detector):
    """Base of detectors that judge images: inputs or samples."""

    least_learning: ClassVar[int] = 0  #: how many images of aux it needs beside those that set the threshold

    @abstractmethod
    def run(self, encoder: ImageEncoder, evidence: Evidence, device: Device, seed: int, watch: Watch) -> Findings:
        """Score `evidence.images`, learning and calibrating on `evidence.aux` only. The encoder is not changed."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the encoder with an independent one (`evidence.reference`)."""
        return False

    def calibration_count(self, aux: int) -> int:
        """Return on how many of `aux` images the threshold is set: all, unless the detector learns on a part."""
        return aux


@dataclass(frozen=True)
class Evidence:
    """What the defender holds. images: uint8 N,3,H,W to judge; aux: uint8 M,3,H,W to learn and calibrate on, or none.

    boxes: int N,4, where each image's trigger is (zeros where there is none): for bounds alone, else None.
    reference: an independent encoder for detectors that compare with one, else None.
    """

    images: np.ndarray
    aux: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 1, 1), np.uint8))
    boxes: np.ndarray | None = None
    reference: ImageEncoder | None = None


@dataclass(frozen=True)
class Findings:
    """What a detector says. scores: float64 N of the judged images; calibration: float64 of held-out aux images.

    A detector of samples has no calibration: `flagged`, bool N, is its own decision. windows: int32 N,4 as x, y, width
    and height, where it saw the trigger (zeros where it did not look); ranking: rows that it is surest of, best first.
    pictures: named uint8 arrays for the report (rows are images), picture_rows: which judged images they show.
    controls: scores of the judged images that should rank them worse (another score, a severed cue); rules: what other
    decision rules flag, bool N. outside: scores again with only the pixels kept, bool N,H,W (for evaluation).
    search_space: what was looked for; doubt: why the result cannot be vouched for, empty where it can. is_evidence:
    whether flags are; those of a fixed share of any set, or drawn at random, are not.
    extras: further named arrays; summary: plain values. learned: tensors that a guard needs to judge other images.
    """

    scores: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.zeros(0))
    flagged: np.ndarray | None = None
    windows: np.ndarray | None = None
    ranking: np.ndarray | None = None
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    picture_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    controls: dict[str, np.ndarray] = field(default_factory=dict)
    rules: dict[str, np.ndarray] = field(default_factory=dict)
    outside: Callable[[np.ndarray], np.ndarray] | None = None
    search_space: str = ""
    doubt: str = ""
    is_evidence: bool = True
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def scored(self, scores: np.ndarray, calibration: np.ndarray, learned: dict[str, Tensor]) -> Findings:
        """Return these findings with scores, calibration and what was learned put in."""
        return replace(self, scores=scores, calibration=calibration, learned=learned)
