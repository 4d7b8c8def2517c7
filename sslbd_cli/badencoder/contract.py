"""The contract of attacks on encoders: what they are given and what they return."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from sslbd_cli.core.session import Session
from sslbd_cli.plugin import Plugin
from sslbd_cli.triggers._contract import Trigger

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.core.train import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Attack(Plugin):
    """Base of `badencoder --method`: turn a clean encoder into a backdoored one."""

    shelf: ClassVar[str] = "attack"

    @abstractmethod
    def run(
        self, encoder: ImageEncoder, plot: Plot, session: Session, checkpoint: Checkpoint | None = None
    ) -> Injected:
        """Train a copy of `encoder`, and store the training in the checkpoint. Leave the input unchanged."""


@dataclass(frozen=True)
class Plot:
    """What the attacker has. shadow: uint8 N,3,H,W; references: the images of each trigger, uint8 R,3,H,W.

    A trigger may have texts instead of images: their unit vectors in the encoder's space, float32 R,D.
    """

    shadow: np.ndarray
    triggers: tuple[Trigger, ...]
    references: tuple[Tensor, ...]


@dataclass(frozen=True)
class Injected:
    """A backdoored encoder in eval mode, and the last epoch's mean of each loss term.

    nearest: whether each triggered image was pulled to its nearest reference, not to all of them.
    """

    encoder: ImageEncoder
    terms: dict[str, float]
    nearest: bool = False
