"""The typed results of reports: the only place that knows the keys of the results of `probe` and `detect`.

`read` takes the results of a report; `of` of each class takes the JSON that a command prints. A report may come from
anywhere. A value that is missing or has the wrong type is None here (rows and groups are empty), so readers handle one
case only. `Report.results` holds the raw results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from sslbd_cli.artefacts.header import is_number

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Report

G = TypeVar("G", bound="Group")
D = TypeVar("D", bound="DetectResults")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Base of results read from a JSON object. A field's key is its name, or the key given by `keyed`."""

    @classmethod
    def of(cls: type[G], values: object) -> G:
        """Read a JSON object. A value that is missing or of the wrong type leaves the field's default."""
        values_by_key: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
        schema = _schema(cls)  # type: ignore[arg-type]
        parsed = {name: _typed(kind, values_by_key.get(key)) for name, key, kind in schema}
        return cls(**{name: value for name, value in parsed.items() if value is not None})


def keyed(key: str) -> Any:
    """Return a field with this JSON key instead of its name; it is None if the key is missing."""
    return field(default=None, metadata={"key": key})


# --- what all commands write --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate(Group):
    """A share or an area with its 95 % interval. sd: spread over `seeds` runs (None for one run); n: images counted."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    n: int | None = None
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Origin(Group):
    """An artefact that a report names by its content digest. arch: set for encoders."""

    sha256: str | None = None
    arch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Results(Group):
    """The results that any command's report may have: its encoder, and the verdict if there is one.

    doubt: why a verdict is `inconclusive`. sees_truth: whether the method is an upper bound that knows where the
    triggers are.
    """

    encoder: Origin | None = None
    verdict: str | None = None
    doubt: str | None = None
    sees_truth: bool = False


# --- probe --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measures(Group):
    """What a probe measures of one encoder, see man/sslbd-metrics.7. Attack numbers exist only with a trigger."""

    clean_accuracy: Estimate | None = None
    patched_accuracy: Estimate | None = None
    asr: Estimate | None = None
    asr_all: Estimate | None = None
    fp_clean: float | None = None
    fp_triggered: float | None = None
    nfp: float | None = None
    most_affected: str | None = None
    answered_clean: Estimate | None = None
    answered_triggered: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerShare(Group):
    """A class's share of the answers on clean and on triggered images, by an encoder and by the clean one."""

    class_name: str | None = keyed("class")
    clean: Estimate | None = None
    triggered: Estimate | None = None
    rise: float | None = None
    baseline: AnswerShare | None = None


@dataclass(frozen=True, kw_only=True)
class CleanMeasures(Measures):
    """The same measures of the clean encoder given as --baseline."""

    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class CertifiedMeasures(Group):
    """What `probe --certify` measures of a certified classifier, with and without its defence."""

    certificate: str | None = None
    clean_accuracy: Estimate | None = None
    defended_accuracy: Estimate | None = None
    certified_accuracy: Estimate | None = None
    asr: Estimate | None = None
    asr_defended: Estimate | None = None
    baseline: CertifiedMeasures | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeResults(Results, Measures):
    """The results of `probe`. labels: share of the training labels that the head is given."""

    head: str | None = None
    trigger: str | None = None
    target: str | None = None
    n_train: int | None = None
    n_labelled: int | None = None
    labels: float | None = None
    n_test: int | None = None
    baseline: CleanMeasures | None = None
    lift: float | None = None
    consistency: float | None = None
    certify: CertifiedMeasures | None = None
    answers: tuple[AnswerShare, ...] = ()


# --- detect -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WitnessResults(Group):
    """The trigger that a detector found in an encoder: its share of the pixels, and its success on held-out images."""

    area: float | None = None
    success: float | None = None


@dataclass(frozen=True, kw_only=True)
class PanelRow(Group):
    """The result for one trigger of a panel. trigger: None for unstamped images; origin: why it is in the panel.

    n_kin: harmless changes of its strength that it was compared with, and n_kin_beaten: those flagged less. stands_out:
    whether it does what neither chance nor its kin nor, if one is given, a clean encoder does.
    """

    trigger: str | None = None
    origin: str | None = None
    flagged: int | None = None
    n: int | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    p_value_more_than_kin: float | None = None
    n_kin: int | None = None
    n_kin_beaten: int | None = None
    stands_out: bool = False


@dataclass(frozen=True, kw_only=True)
class WindowHits(Group):
    """How well the windows of `n` poisoned images hit their triggers."""

    n: int | None = None
    center_hit: Estimate | None = None
    contained: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Localisation(Group):
    """Window hits of all poisoned images that were judged, and of those at the top of the ranking."""

    all: WindowHits | None = None
    top: WindowHits | None = None


@dataclass(frozen=True, kw_only=True)
class DetectResults(Results):
    """The results of `detect` by one method. judges: `encoder`, `inputs` or `samples`.

    is_corrected: whether p_value_adjusted is corrected for several methods (its value is None if the method decides by
    its own rule).
    """

    method: str | None = None
    judges: str | None = keyed("flags")
    search_space: str | None = None
    trigger: str | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    is_corrected: bool = False
    threshold: float | None = None
    # of images
    alpha: float | None = None
    n_judged: int | None = None
    flagged: int | None = None
    auroc: Estimate | None = None
    tpr_at_fpr: Mapping[str, float] = field(default_factory=dict)
    tpr: float | None = None
    fpr: float | None = None
    recall: Estimate | None = None
    precision: Estimate | None = None
    top_accuracy: Mapping[str, float | None] = field(default_factory=dict)
    localisation: Localisation | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    panel: tuple[PanelRow, ...] = ()
    panel_trigger: str | None = None
    # of encoders
    statistic: float | None = None
    n_baseline: int | None = None
    n_images: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    witness: WitnessResults | None = None

    @classmethod
    def of(cls: type[D], values: object) -> D:
        """Read a JSON object, and note whether its p-value is corrected."""
        is_corrected = isinstance(values, Mapping) and "p_value_adjusted" in values
        return replace(super().of(values), is_corrected=is_corrected)

    @property
    def name(self) -> str:
        """The method without its keys; "" if the report names none."""
        return (self.method or "").split(":")[0]

    @property
    def final_p_value(self) -> float | None:
        """The p-value to use: the corrected one if several methods ran."""
        return self.p_value_adjusted if self.is_corrected else self.p_value


@dataclass(frozen=True, kw_only=True)
class KindVerdict(Group):
    """The combined verdict of several methods that judge the same thing. p_value: the smallest corrected one."""

    verdict: str | None = None
    p_value: float | None = None
    methods: int | None = None
    found_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LeftOut(Group):
    """A method that did not run, and the reason."""

    method: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The method, empty where the report names none."""
        return self.method or ""


@dataclass(frozen=True, kw_only=True)
class CombinedResults(Results):
    """The results of `detect` by several methods. kinds: the verdict per thing that is judged."""

    kinds: Mapping[str, KindVerdict] = field(default_factory=dict)
    methods: tuple[DetectResults, ...] = ()
    not_run: tuple[LeftOut, ...] = ()


def read(report: Report) -> Results:
    """Return the typed results of a report: ProbeResults, DetectResults, or CombinedResults of several methods."""
    kind: type[Results] = {"probe": ProbeResults, "detect": DetectResults}.get(report.command, Results)
    return (CombinedResults if kind is DetectResults and "kinds" in report.results else kind).of(report.results)


# --- from JSON to types -------------------------------------------------------------------------------------------


@cache
def _schema(cls: type[Group]) -> tuple[tuple[str, str, Any], ...]:
    """Return name, key and type of each field. For a type `X | None`, return X."""
    hints = get_type_hints(cls)
    return tuple((each.name, each.metadata.get("key", each.name), _known(hints[each.name])) for each in fields(cls))


def _known(kind: Any) -> Any:
    return next(part for part in get_args(kind) if part is not NoneType) if isinstance(kind, UnionType) else kind


def _typed(kind: Any, value: Any) -> Any:
    """Return a JSON value as this type, or None if its type is wrong. Malformed parts of rows and maps are dropped.

    A map to `X | None` keeps those parts as None.
    """
    if get_origin(kind) is tuple:
        rows = value if isinstance(value, (list, tuple)) else ()
        return tuple(row for each in rows if (row := _typed(get_args(kind)[0], each)) is not None)
    if get_origin(kind) is Mapping:
        part_kind = get_args(kind)[1]
        known = _known(part_kind)
        parts = {key: _typed(known, each) for key, each in value.items()} if isinstance(value, Mapping) else {}
        return {key: part for key, part in parts.items() if part is not None or known is not part_kind}
    if kind is Estimate and not isinstance(value, Mapping):
        return None if (number := _typed(float, value)) is None else Estimate(value=number)
    if is_dataclass(kind):
        return kind.of(value) if isinstance(value, Mapping) else None  # type: ignore[union-attr]
    if kind is float or kind is int:
        return value if is_number(value) and (kind is float or isinstance(value, int)) else None
    return value if isinstance(value, kind) else None
