"""What `detect` is asked. A request holds everything that judging needs, so that judging opens no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder, Guard
from sslbd_cli.detect.contract import Clues, EncoderDetector, ImageDetector
from sslbd_cli.detect.image_verdict import Case
from sslbd_cli.detect.panel import Panel
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True)
class ImageRequest:
    """Judge images by one detector of inputs or samples.

    data: the SHA-256 of the dataset that the images come from. baseline: a clean encoder to judge the same images by.
    panel: how the images were made, if the user gave none. aux_digests: uint64 M, one per auxiliary image, if a guard
    is to be made.
    """

    method: ImageDetector
    encoder: Encoder
    case: Case
    data: str
    trigger: Trigger | None = None
    baseline: Encoder | None = None
    reference: Encoder | None = None
    panel: Panel | None = None
    aux_digests: np.ndarray | None = None


@dataclass(frozen=True)
class CleanStatistic:
    """The statistic of a clean encoder, and that of each search, as an earlier report has them."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class EncoderRequest:
    """Judge an encoder by one detector, compared with clean encoders and with earlier reports on clean encoders.

    data: the SHA-256 of the dataset that the clues come from.
    """

    method: EncoderDetector
    encoder: Encoder
    clues: Clues
    data: str
    alpha: float
    clean: tuple[Encoder, ...] = ()
    reported: tuple[CleanStatistic, ...] = ()
    backdoored: tuple[Encoder, ...] = ()


@dataclass(frozen=True)
class GuardRequest:
    """Judge images by a guard that was made before."""

    guard: Guard
    encoder: Encoder
    reference: Encoder | None
    case: Case
    data: str
    alpha: float
    trigger: Trigger | None = None


Request = ImageRequest | EncoderRequest


@dataclass(frozen=True)
class NotRun:
    """A method that gave no answer, and why.

    cost: orders the methods. lacks_key: the method needs a key that was not given. out_of_time: the budget was spent
    before the method came to an answer.
    """

    method: str
    reason: str
    cost: float = 0
    lacks_key: bool = False
    out_of_time: bool = False

    @classmethod
    def because(cls, name: str, error: InputError, cost: float = 0, lacks_key: bool = False) -> NotRun:
        """Say why a method was refused, without its own name, which stands beside the reason."""
        return cls(name, str(error).removeprefix(f"{name}: "), cost, lacks_key)

    def row(self) -> dict[str, str]:
        """Return the row of the report."""
        return {"method": self.method, "reason": self.reason}


@dataclass(frozen=True)
class Screening:
    """Everything that one run judges. is_open: the user asked for all methods, so one that does not apply drops out."""

    encoder: Encoder
    requests: tuple[Request, ...]
    alpha: float
    not_run: tuple[NotRun, ...] = ()
    is_open: bool = False

    @property
    def single(self) -> Request | None:
        """Return the only request of a run that named one method."""
        return self.requests[0] if len(self.requests) == 1 and not self.is_open else None
