"""What a detector is given and what it returns: of images, of inputs that it learns for, and of encoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
from torch import Tensor

from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed_once, need_distinct, split_rows
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin, key
from sslbd_cli.triggers._found import Witness

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class Detector(Plugin):
    """Base of `detect --method`. Higher is more suspicious. Blind to truth and history by construction.

    What it judges says which of its two kinds it is: ImageDetector below, or EncoderDetector.
    """

    shelf: ClassVar[str] = "detector"
    #: inputs: images that the encoder may be given, judged against others held to be clean (`evidence.aux`);
    #: samples: the images that it was trained on, judged among themselves, with no clean one at hand;
    #: encoder: the encoder itself, by clean images and, where there are any, encoders known to be clean.
    judges: ClassVar[Literal["encoder", "inputs", "samples"]]
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
    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
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


@dataclass(frozen=True)
class Clues:
    """What the auditor of an encoder holds. Clean images uint8, to search on and, held out, to test a witness on.

    labels and held_labels: int64, for detectors that need a downstream task, which has `classes`.
    clean, backdoored: encoders known to be so, for detectors that learn from examples.
    """

    images: np.ndarray
    held: np.ndarray
    labels: np.ndarray | None = None
    held_labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    clean: tuple[ImageEncoder, ...] = ()
    backdoored: tuple[ImageEncoder, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """What a detector says of an encoder. statistic: higher is more suspicious; threshold: its own rule, or None.

    witness: the trigger that was found, and success: what it does to held-out images, as a share of them, by the
    detector's own definition. search_space: what was looked for; doubt: why the result cannot be vouched for, empty
    where it can. parts: where several searches are made, the statistic of each, on scales of their own: among clean
    encoders they are brought to one scale, and the one that stands out most has the witness (of `witnesses`, each with
    its success). pool: statistics of clean encoders that a detector which learns has held out, by its own making
    comparable with the encoder's. pictures: named uint8 K,3,H,W; extras: further arrays; summary: plain values.
    """

    statistic: float
    threshold: float | None
    search_space: str
    witness: Witness | None = None
    success: float | None = None
    doubt: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    witnesses: dict[str, tuple[Witness, float]] = field(default_factory=dict)
    pool: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncoderDetector(Detector):
    """Base of detectors that judge an encoder itself."""

    judges = "encoder"
    cost: ClassVar[float] = 100
    needs_labels: ClassVar[bool] = False  # whether the images' labels make a downstream task for it
    learns: ClassVar[bool] = False  # whether it learns from encoders known to be clean and known to be backdoored

    @final
    def __call__(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        """Judge an encoder. It is left as it was, on the device, in eval mode and without gradients.

        Raises InputError for an encoder whose embeddings say nothing, and where the images do not do for the search.
        """
        net = encoder.to(session.device.torch).eval()
        trained = [parameter.requires_grad for parameter in net.parameters()]
        net.requires_grad_(False)  # gradients go through the encoder to the pixels, and leave none in it
        try:
            need_distinct(net, clues.images, session.device)
            return self.examine(net, clues, session)
        finally:
            for parameter, flag in zip(net.parameters(), trained, strict=True):
                parameter.requires_grad_(flag)

    @abstractmethod
    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        """Judge an encoder that is on the device, in eval mode, and whose parameters take no gradients."""


State = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """Where a detector of inputs works. reference: an independent encoder, for those that compare with one."""

    encoder: ImageEncoder
    session: Session
    reference: ImageEncoder | None = None

    @property
    def device(self) -> Device:
        return self.session.device

    def embed(self, images: np.ndarray) -> Tensor:
        """Embed images uint8 N,3,H,W by the encoder, each once in a run: float32 N,D."""
        return embed_once(self.encoder, images, self.session)

    def need_reference(self, owner: str) -> ImageEncoder:
        """Return the reference encoder. Raises InputError in the name of `owner` where there is none."""
        if self.reference is None:
            raise InputError(f"{owner} compares with an independent encoder: give one as --reference")
        return self.reference


@dataclass(frozen=True)
class Looked:
    """What a detector saw in images. columns: float64 N each, by name; `score` is what it decides by.

    The other columns are scores that it did not choose. aside: what its `explain` would otherwise compute again.
    """

    columns: dict[str, np.ndarray]
    aside: Any = None


@dataclass(frozen=True, kw_only=True)
class InputDetector(ImageDetector):
    """Base of detectors of inputs: they learn on one part of --aux, and the other part sets the threshold.

    An image's score depends on what was learned and on the image alone, never on what else is judged, so that what was
    learned can be kept as a guard and judge images one by one.
    """

    judges = "inputs"
    least_learning = 2
    cue: ClassVar[str]  # which inputs it flags, to end "judged inputs ..." with

    held: float = key(0.25, "share of --aux kept from learning, to set the threshold on", low=0.05, high=0.9)

    @abstractmethod
    def learn(self, images: np.ndarray, setting: Setting) -> State:
        """Learn on images uint8 M,3,H,W held to be clean. Returns tensors by name: all that `look` goes by."""

    @abstractmethod
    def look(self, images: np.ndarray, state: State, setting: Setting) -> Looked:
        """Score images uint8 N,3,H,W. Draws, where there are any, belong to `learn`."""

    def explain(self, judged: Looked, held: Looked, images: np.ndarray, state: State, setting: Setting) -> Findings:
        """Say more of the judged images than their scores; `run` puts scores and calibration in."""
        others = {name: column for name, column in judged.columns.items() if name != "score"}
        return Findings(np.zeros(0), controls=others, search_space=f"judged inputs {self.cue}")

    def calibration_count(self, aux: int) -> int:
        return max(1, round(aux * self.held))

    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        """Learn, set a scale on the aux images held out, and judge; the state learned is kept for a guard."""
        setting = Setting(encoder, session, evidence.reference)
        if self.needs_reference:
            setting.need_reference(self.name)
        rows, kept = split_rows(len(evidence.aux), self.held, session.generator(self.name, "held out"))
        state = self.learn(evidence.aux[rows.numpy()], setting)
        held = self.look(evidence.aux[kept.numpy()], state, setting)
        judged = self.look(evidence.images, state, setting)
        told = self.explain(judged, held, evidence.images, state, setting)
        return told.scored(judged.columns["score"], held.columns["score"], state)
