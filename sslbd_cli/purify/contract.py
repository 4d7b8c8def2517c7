"""The contracts of purifiers: of encoders and of datasets."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sslbd_cli.core.session import Session
from sslbd_cli.plugin import Plugin

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.core.train import Checkpoint
    from sslbd_cli.triggers._found import Witness


@dataclass(frozen=True, kw_only=True)
class Purifier(Plugin):
    """Base of `purify --method`. Its two subclasses clean encoders and datasets.

    needs: the options that it must be given; takes: the options that it may be given.
    """

    shelf: ClassVar[str] = "purifier"
    cleans: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Supplies:
    """What an encoder is purified with: clean unlabeled images uint8 N,3,H,W, and a trigger that a detector found.

    checkpoint: where the state of the training is stored; see `repair.training`. captions: one of each image, for
    purifiers that read them.
    """

    images: np.ndarray
    witness: Witness | None = None
    checkpoint: Checkpoint | None = None
    captions: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderPurifier(Purifier):
    """Base of purifiers that make a clean encoder from a suspicious one. One that needs `report` gets a witness.

    is_faithful: whether clean images keep their embeddings, so that a text tower still fits. reads_captions: whether it
    trains the text tower, too; then the encoder that it is given and that it returns have it among their parts.
    """

    cleans = "an encoder"
    reads_captions: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("data",)
    takes = ("limit", "checkpoint", "resume")

    @property
    def is_faithful(self) -> bool:
        return False

    @abstractmethod
    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        """Return a purified encoder. The input must not be changed.

        Raises InputError if the method does not know the architecture.
        """


@dataclass(frozen=True, kw_only=True)
class DatasetPurifier(Purifier):
    """Base of purifiers that remove images from a suspicious training set, by the report of a detector of samples."""

    cleans = "a dataset"
    needs = ("report",)
    takes = ("keep_quantile",)

    @abstractmethod
    def keep(self, scores: np.ndarray, flagged: np.ndarray, quantile: float | None) -> np.ndarray:
        """Return which images to keep, bool N, by scores float64 N (higher is more suspicious) and flags bool N.

        quantile: the share of images to keep instead; None: use the flags.
        """
