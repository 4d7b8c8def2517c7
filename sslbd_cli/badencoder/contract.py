"""The contract of attacks on encoders: what they are given and what they return."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from sslbd_cli.core.session import Session
from sslbd_cli.plugin import Plugin
from sslbd_cli.triggers._contract import Trigger

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class Attack(Plugin):
    """Base of `badencoder --method`: turn a clean encoder into a backdoored one."""

    shelf: ClassVar[str] = "attack"

    @abstractmethod
    def run(self, encoder: ImageEncoder, plot: Plot, session: Session) -> Injected:
        """Train a copy of `encoder`. The input must not be changed."""


@dataclass(frozen=True)
class Plot:
    """What the attacker has. shadow: uint8 N,3,H,W; references: the images of each trigger, uint8 R,3,H,W."""

    shadow: np.ndarray
    triggers: tuple[Trigger, ...]
    references: tuple[Tensor, ...]


@dataclass(frozen=True)
class Injected:
    """A backdoored encoder, the last epoch's mean of each loss term, and the final encoder's mean cosines.

    spread: how the final encoder's triggered embeddings lie among clean ones; see badencoder/inject.py, `outcome`.
    """

    encoder: ImageEncoder
    terms: dict[str, float]
    cosines: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
