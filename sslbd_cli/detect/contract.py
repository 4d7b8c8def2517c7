"""What you write to add a detector: which base class, what it is given, what it returns.

Put one file on the shelf `sslbd_cli/detect/methods/`. What the detector judges says which base class it takes:

    judges                                     base               you write     given              returned
    inputs: images that the encoder is given   InputDetector      learn, look   images, Setting    State, Observation
    samples: images that it was trained on     ImageDetector (*)  run           Evidence, Session  Findings
    encoder: the encoder itself                EncoderDetector    examine       Clues, Session     Opinion

(*) Set the class attribute `judges = "samples"`, and put the decision into `Scores.flagged`. Other detectors leave the
decision to the caller, who sets a threshold on clean images or compares with clean encoders.

A higher score is always more suspicious. A detector sees neither the truth nor the history. It leaves the encoder as it
was, and draws from `session.generator(self.name, "what the draw is for")` only, so that equal seeds give equal scores.
This is a complete detector of inputs:

    @dataclass(frozen=True, kw_only=True)
    class LongEmbedding(InputDetector):
        '''Flag inputs whose embedding is longer than clean ones usually are.'''

        cue = "whose embedding is longer than clean ones usually are"
        cost = 1

        def learn(self, images: np.ndarray, setting: Setting) -> State:
            return {"usual": setting.embed(images).norm(dim=1).median()}

        def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
            excess = setting.embed(images).norm(dim=1) - state["usual"]
            return Observation({"score": excess.double().cpu().numpy()})
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import numpy as np
from torch import Tensor

from sslbd_cli.artefacts import paging
from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed_once, need_distinct, split_rows
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin, key
from sslbd_cli.triggers._found import Witness


@dataclass(frozen=True)
class Load:
    """How many images a detector sends through the encoder, about.

    images: embedded once, by whichever method is the first to need them. passes: further ones. gradients: with
    gradients at their pixels.
    """

    images: int = 0
    passes: int = 0
    gradients: int = 0


@dataclass(frozen=True, kw_only=True)
class Detector(Plugin):
    """Base of `detect --method`. Derive from one of the three classes named at the top of this file."""

    shelf: ClassVar[str] = "detector"
    judges: ClassVar[Literal["encoder", "inputs", "samples"]]
    #: rough cost, by which `--method all` orders detectors: 1 embeds the images once, 10 trains on the embeddings, 100
    #: runs the encoder at every step of a search or of a training.
    cost: ClassVar[float] = 10
    is_floor: ClassVar[bool] = False  # whether it looks at nothing: not a detector, but the result of chance

    def load(self, judged: int, aux: int, side: int) -> Load:
        """Return what the detector sends through the encoder. Override this if images go through it more than once.

        judged: images to judge, or to search with. aux: auxiliary images. side: of the images, in pixels.
        """
        return Load(judged + aux)

    @property
    def is_bound(self) -> bool:
        """Whether it is told where the triggers are: not a detector, but an upper bound."""
        return False


@dataclass(frozen=True)
class Pictures:
    """What the report shows. images: uint8 arrays by name; their rows are pictures.

    rows: int64, the judged image that each picture shows, if it shows one. arrays: further arrays, by their name in the
    report.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


# --- images: what a detector of inputs or samples is given and returns --------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageDetector(Detector):
    """Base of detectors of samples; detectors of inputs derive from InputDetector, which implements `run`."""

    least_learning: ClassVar[int] = 0  #: least number of aux images to learn on, beside those that set the threshold

    @abstractmethod
    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        """Score `evidence.images`, learning and calibrating on `evidence.aux` only. The encoder is not changed."""

    def score_more(self, images: np.ndarray, findings: Findings, encoder: ImageEncoder, inquiry: Inquiry) -> np.ndarray:
        """Score other images uint8 N,3,H,W as those of `findings` were scored: float64 N. The default runs again."""
        evidence = replace(inquiry.evidence, images=images)
        return self.run(encoder, evidence, inquiry.session).scores.values

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the encoder with an independent one (`evidence.reference`)."""
        return False

    @property
    def reads_texts(self) -> bool:
        """Whether it needs the encoder's text tower (`language.tower.load_joint` puts it among the encoder's parts)."""
        return False

    @property
    def reads_captions(self) -> bool:
        """Whether it judges pairs: it needs `evidence.captions`."""
        return False

    def calibration_count(self, aux: int) -> int:
        """Return how many of `aux` images set the threshold: all, unless the detector learns on a part of them."""
        return aux


@dataclass(frozen=True)
class Evidence:
    """What the defender has. images: uint8 N,3,H,W to judge. aux: uint8 M,3,H,W to learn and calibrate on, or none.

    boxes: int N,4, where each image's trigger is (zeros without a trigger). Bounds alone get it; others get None.
    reference: an independent encoder for detectors that compare with one, else None. captions: one of each image, for
    detectors of samples that judge pairs.
    """

    images: np.ndarray
    aux: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 1, 1), np.uint8))
    boxes: np.ndarray | None = None
    reference: ImageEncoder | None = None
    captions: list[str] | None = None


@dataclass(frozen=True)
class Inquiry:
    """One run of a detector: what it was given, and the run's session."""

    evidence: Evidence
    session: Session


@dataclass(frozen=True)
class Scores:
    """How suspicious each judged image is. values: float64 N, higher is more suspicious.

    calibration: float64, scores of clean images that the detector has not learned on; they set the threshold. A
    detector of samples has none; it decides by itself: flagged, bool N. is_evidence: whether a flagged image speaks for
    a backdoor. It does not if a fixed share of any set, or random images, are flagged. ranking: int64, the most
    suspicious rows, best first; None means the order of the values. windows: int32 N,4 as x, y, width and height, where
    the detector saw the trigger (zeros where it did not look).
    """

    values: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.zeros(0))
    flagged: np.ndarray | None = None
    is_evidence: bool = True
    ranking: np.ndarray | None = None
    windows: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores that only measure the detector, once the truth is known. They decide nothing.

    controls: other scores of the judged images by name, float64 N, which should rank them worse. rules: flags by other
    decision rules, bool N. outside: a function that scores the images by the pixels marked in bool N,H,W alone.
    """

    controls: dict[str, np.ndarray] = field(default_factory=dict)
    rules: dict[str, np.ndarray] = field(default_factory=dict)
    outside: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Findings:
    """The result of a detector of images. search_space: what was searched for, in words.

    doubt: why the result cannot be trusted; empty if it can. summary: plain values for the report. learned: tensors
    that a guard needs to judge other images; InputDetector fills them in.
    """

    scores: Scores
    search_space: str
    doubt: str = ""
    pictures: Pictures = field(default_factory=Pictures)
    evaluation: Evaluation = field(default_factory=Evaluation)
    summary: dict[str, Any] = field(default_factory=dict)
    learned: State = field(default_factory=dict, repr=False)


# --- inputs: learn on clean images, then look at any image --------------------------------------------------------


State = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What a detector of inputs works with. reference: an independent encoder, for detectors that compare with one.

    It puts both encoders on the session's device, in eval mode.
    """

    encoder: ImageEncoder
    session: Session
    reference: ImageEncoder | None = None

    def __post_init__(self) -> None:
        for net in (self.encoder, self.reference):
            if net is not None:
                net.to(self.device.torch).eval()

    @property
    def device(self) -> Device:
        return self.session.device

    def embed(self, images: np.ndarray) -> Tensor:
        """Embed images uint8 N,3,H,W by the encoder: float32 N,D. Equal images are embedded once per run."""
        return embed_once(self.encoder, images, self.session)

    def need_reference(self, owner: str) -> ImageEncoder:
        """Return the reference encoder. Raises InputError in the name of `owner` if there is none."""
        if self.reference is None:
            raise InputError(f"{owner} compares with an independent encoder: give one as --reference")
        return self.reference


@dataclass(frozen=True)
class Observation:
    """The scores of images. columns: by name, float64 N each; the detector decides by the one called `score`.

    for_explain: anything that `explain` would otherwise compute again.
    """

    columns: dict[str, np.ndarray]
    for_explain: Any = None

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], decisive: str) -> Observation:
        """Return several scores of the same images, of which the detector decides by the one called `decisive`."""
        return cls(
            {"score": columns[decisive]} | {name: column for name, column in columns.items() if name != decisive}
        )

    @property
    def score(self) -> np.ndarray:
        """Return the scores that the detector decides by, float64 N."""
        return self.columns["score"]

    @property
    def other_columns(self) -> dict[str, np.ndarray]:
        """Return the other scores, by name."""
        return {name: column for name, column in self.columns.items() if name != "score"}


@dataclass(frozen=True)
class Inspection:
    """Everything that a detector of inputs did in one run. images: uint8 N,3,H,W, judged. of_images: their scores.

    of_clean: the scores of the clean images that set the threshold. state: what the detector has learned.
    """

    images: np.ndarray
    of_images: Observation
    of_clean: Observation
    state: State
    setting: Setting

    @property
    def scores(self) -> Scores:
        """Return the scores of the judged images and of those that set the threshold."""
        return Scores(self.of_images.score, self.of_clean.score)


@dataclass(frozen=True, kw_only=True)
class InputDetector(ImageDetector):
    """Base of detectors of inputs: they learn on one part of --aux, and the other part sets the threshold.

    The score of an image depends on the learned state and on the image alone, never on the other images judged. So a
    guard can keep the state and judge images one by one.
    """

    judges = "inputs"
    least_learning = 2
    cue: ClassVar[str]  # which inputs it flags: the words after "judged inputs ..."

    held: float = key(0.25, "share of --aux that sets the threshold and is not learned on", low=0.05, high=0.9)

    @abstractmethod
    def learn(self, images: np.ndarray, setting: Setting) -> State:
        """Learn on images uint8 M,3,H,W, assumed clean. Returns all that `look` needs, as tensors by name."""

    @abstractmethod
    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        """Score images uint8 N,3,H,W. Draw nothing at random here, but in `learn`."""

    def explain(self, inspection: Inspection) -> Findings:
        """Return the findings. Override this to add pictures, controls or a doubt."""
        controls = inspection.of_images.other_columns
        return Findings(inspection.scores, f"judged inputs {self.cue}", evaluation=Evaluation(controls))

    def calibration_count(self, aux: int) -> int:
        return max(1, round(aux * self.held))

    @final
    def run(self, encoder: ImageEncoder, evidence: Evidence, session: Session) -> Findings:
        """Learn on a part of the aux images, score the other part and the images, and keep the state for a guard."""
        setting = Setting(encoder, session, evidence.reference)
        if self.needs_reference:
            setting.need_reference(self.name)
        aux = evidence.aux
        learning, calibrating = split_rows(len(aux), self.held, session.generator(self.name, "held out"))
        state = self.learn(paging.take(aux, learning.numpy()), setting)
        of_clean = self.look(paging.take(aux, calibrating.numpy()), state, setting)
        of_images = self.look(evidence.images, state, setting)
        findings = self.explain(Inspection(evidence.images, of_images, of_clean, state, setting))
        return replace(findings, learned=state)

    @final
    def score_more(self, images: np.ndarray, findings: Findings, encoder: ImageEncoder, inquiry: Inquiry) -> np.ndarray:
        """Score other images by what was learned."""
        setting = Setting(encoder, inquiry.session, inquiry.evidence.reference)
        return self.look(images, findings.learned, setting).score


# --- encoders: search the encoder itself --------------------------------------------------------------------------


@dataclass(frozen=True)
class Clues:
    """What the auditor of an encoder has. images: clean, uint8 N,3,H,W, to search on.

    held_out_images: clean, uint8 M,3,H,W, to test a trigger on. labels, held_out_labels, classes: int64 N, int64 M and
    names, for detectors that need a downstream task. clean_encoders, backdoored_encoders: for detectors that learn from
    encoders.
    """

    images: np.ndarray
    held_out_images: np.ndarray
    labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    clean_encoders: tuple[ImageEncoder, ...] = ()
    backdoored_encoders: tuple[ImageEncoder, ...] = ()


@dataclass(frozen=True)
class FoundTrigger:
    """A trigger that was found. witness: stamps it on images.

    success: share of held-out images on which it works, by the detector's own definition; None if there was no image to
    test it on.
    """

    witness: Witness
    success: float | None


@dataclass(frozen=True)
class SearchOutcome:
    """The result of one of several searches: its statistic, and the trigger that it found."""

    statistic: float
    trigger: FoundTrigger | None = None


@dataclass(frozen=True)
class Opinion:
    """The result of a detector of encoders. statistic: higher is more suspicious. threshold: its own rule, or None.

    search_space: what was searched for, in words. doubt: why the result cannot be trusted; empty if it can. trigger:
    the trigger that was found. searches: the result of each search, if there are several. Their statistics may be on
    different scales. Clean encoders bring them to one scale; then the search that stands out most gives the trigger.
    clean_statistics: float64, statistics of clean encoders that a learning detector has held out, comparable with the
    encoder's. pictures: images are uint8 K,3,H,W. summary: plain values for the report.
    """

    statistic: float
    threshold: float | None
    search_space: str
    doubt: str = ""
    trigger: FoundTrigger | None = None
    searches: dict[str, SearchOutcome] = field(default_factory=dict)
    clean_statistics: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pictures: Pictures = field(default_factory=Pictures)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, float]:
        """Return the statistic of each of several searches, by name."""
        return {name: outcome.statistic for name, outcome in self.searches.items()}


@dataclass(frozen=True, kw_only=True)
class EncoderDetector(Detector):
    """Base of detectors that judge an encoder itself."""

    judges = "encoder"
    cost: ClassVar[float] = 100
    needs_labels: ClassVar[bool] = False  # whether it needs labels, for a downstream task
    learns: ClassVar[bool] = False  # whether it learns from clean and backdoored encoders
    has_threshold: ClassVar[bool] = True  # whether it decides by itself, without clean encoders to compare with

    @final
    def __call__(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        """Judge an encoder. It stays unchanged; afterwards it is on the device, in eval mode and without gradients.

        Raises InputError for an encoder that embeds all images alike, and for images that do not suffice.
        """
        net = encoder.to(session.device.torch).eval()
        were_trainable = [parameter.requires_grad for parameter in net.parameters()]
        net.requires_grad_(False)  # gradients go through the encoder to the pixels, not to its parameters
        try:
            need_distinct(net, clues.images, session)
            return self.examine(net, clues, session)
        finally:
            for parameter, is_trainable in zip(net.parameters(), were_trainable, strict=True):
                parameter.requires_grad_(is_trainable)

    @abstractmethod
    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        """Judge an encoder that is on the device, in eval mode, and whose parameters take no gradients."""
