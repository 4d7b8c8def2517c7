"""Judge an encoder itself: the contract of such detectors, the witness they find, and a pool of clean encoders.

A statistic means little alone: what is usual differs by architecture, resolution and pre-training. Encoders known to be
clean give it a scale, as an empirical p-value; without them a detector's own rule, stated with its source, decides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import metrics, screen
from sslbd_cli.core.artefact import Dataset, Report, spread
from sslbd_cli.core.checked import is_number
from sslbd_cli.core.detectors import Detector
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import need_distinct
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.train import Watch

POOL = 4  # fewer clean encoders than this set no scale: the detector's own rule decides
HELD = 0.25  # share of the images that a witness is tested on, and that nothing is searched on
LEAST = 64  # images that an audit needs, of which a quarter is held out
SHOWN = 8  # held-out images that the report shows with the witness


@dataclass(frozen=True)
class Witness:
    """A trigger that was found: x -> clip(keep * x + add, 0, 1), pixels in [0,1].

    keep: float32 1,H,W or 3,H,W; add: float32 3,H,W. A pattern p under a mask m is keep = 1 - m, add = m * p; noise
    that is added is keep = 1.
    """

    keep: Tensor
    add: Tensor

    def stamp(self, pixels: Tensor) -> Tensor:
        """Apply it to pixels B,3,H,W, uint8 or float in [0,1]; uint8 is rounded."""
        keep, add = self.keep.to(pixels.device), self.add.to(pixels.device)
        if pixels.dtype != torch.uint8:
            return (pixels * keep + add).clamp(0, 1).to(pixels.dtype)
        return (pixels * keep + add * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def area(self) -> float:
        """Return the share of the pixels that it changes: the mean over pixels of what it takes away of them."""
        return float((1 - self.keep).abs().mean())


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

    flags = "encoder"
    cost: ClassVar[float] = 100
    needs_labels: ClassVar[bool] = False  # whether the images' labels make a downstream task for it
    learns: ClassVar[bool] = False  # whether it learns from encoders known to be clean and known to be backdoored

    @final
    def __call__(self, encoder: ImageEncoder, clues: Clues, device: Device, seed: int, watch: Watch) -> Opinion:
        """Judge an encoder. It is left as it was, on the device, in eval mode and without gradients.

        Raises InputError for an encoder whose embeddings say nothing, and where the images do not do for the search.
        """
        net = encoder.to(device.torch).eval()
        trained = [parameter.requires_grad for parameter in net.parameters()]
        net.requires_grad_(False)  # gradients go through the encoder to the pixels, and leave none in it
        try:
            need_distinct(net, clues.images, device)
            return self.examine(net, clues, device, seed, watch)
        finally:
            for parameter, flag in zip(net.parameters(), trained, strict=True):
                parameter.requires_grad_(flag)

    @abstractmethod
    def examine(self, encoder: ImageEncoder, clues: Clues, device: Device, seed: int, watch: Watch) -> Opinion:
        """Judge an encoder that is on the device, in eval mode, and whose parameters take no gradients."""


def gather(data: Dataset, detector: EncoderDetector, limit: int | None, seed: int) -> Clues:
    """Draw the images of an audit: `limit` of them, spread evenly, a quarter of these held out at random.

    Raises InputError for fewer than 64 images, and for a missing downstream task.
    """
    data = data.limited(limit)
    labels = data.need_labels(f"--method {detector.name}") if detector.needs_labels else None
    images = data.images
    if len(images) < LEAST:
        raise InputError(f"{len(images)} images of --data are too few for an audit; give {LEAST} at least")
    order = torch.randperm(len(images), generator=generator(seed, "audit")).numpy()
    held, rest = np.sort(order[: int(HELD * len(order))]), np.sort(order[int(HELD * len(order)) :])
    if labels is None:
        return Clues(images[rest], images[held])
    return Clues(images[rest], images[held], labels[rest], labels[held], data.classes)


# --- what a pool of clean encoders makes of a statistic -----------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """An opinion among clean encoders. p_value: (1 + #{clean >= statistic}) / (n + 1), None without any.

    false_alarms: the share of clean encoders that may be called backdoored; with few of them it is 1 / (n + 1), and an
    encoder must exceed them all. None where the detector's own rule decides. decisive: of several searches, the one
    that stands out most among the clean encoders.
    """

    opinion: Opinion
    pool: np.ndarray
    p_value: float | None
    false_alarms: float | None
    decisive: str | None = None

    def verdict(self) -> tuple[str, str]:
        """Return the verdict and, where it is `inconclusive`, why."""
        opinion = self.opinion
        if opinion.doubt:
            return "inconclusive", opinion.doubt
        if self.false_alarms is not None and self.p_value is not None:
            return ("found" if self.p_value <= self.false_alarms + 1e-12 else "nothing found"), ""
        if opinion.threshold is None:
            return "inconclusive", f"it has no threshold of its own; give {POOL} clean encoders as --baseline"
        if opinion.statistic <= opinion.threshold:
            return "nothing found", ""
        if len(self.pool) and self.pool.max() > opinion.threshold:
            return "inconclusive", "a clean encoder exceeds the threshold, too; give more of them as --baseline"
        return "found", ""


def stand(opinion: Opinion, pool: Sequence[float], alpha: float, parts: Sequence[Mapping[str, float]] = ()) -> Standing:
    """Set an opinion among clean encoders, those given and those that it brings itself, by its parts where it has such.

    Raises InputError where a clean encoder lacks parts.
    """
    known = np.array([*pool, *opinion.pool], np.float64)
    own, others, decisive = opinion.statistic, known, None
    if opinion.parts and len(known) >= POOL:
        own, others, decisive = on_one_scale(opinion.parts, parts)
        witness, success = opinion.witnesses.get(decisive, (opinion.witness, opinion.success))
        opinion = replace(opinion, witness=witness, success=success)
    p_value = float(metrics.conformal(others, np.array([own]))[0]) if len(known) else None
    if len(known) < POOL:
        return Standing(opinion, known, p_value, None)
    return Standing(opinion, known, p_value, max(alpha, 1 / (len(known) + 1)), decisive)


def on_one_scale(own: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> tuple[float, np.ndarray, str]:
    """Bring the parts of several encoders to one scale: their largest z, in deviations of all of them, itself included.

    Returns it for the encoder in question and for the others, and which part is the largest of the former. All are
    treated alike, so that the p-value of the result stays valid: a clean encoder ranks anywhere among clean ones.
    Raises InputError where an encoder lacks parts.
    """
    if any(each.keys() != own.keys() for each in others):
        raise InputError("--baseline: a report without the statistic of every search; make it anew")
    values = np.array([[own[name], *(each[name] for each in others)] for name in own])
    # of so few values a median deviation is often tiny by chance, and would call a clean encoder far out
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True).clip(1e-12)
    largest = z.max(0)
    return float(largest[0]), largest[1:], list(own)[int(z[:, 0].argmax())]


def statistic_of(report: Report, method: str, data: Dataset, count: int) -> tuple[float, dict[str, float]]:
    """Return what an earlier report says of a clean encoder, with its parts, so that it is not examined again.

    Raises InputError for a report by another method, or on other images.
    """
    results = screen.one(report, method).results
    if report.command != "detect" or results.get("flags") != "encoder":
        raise InputError("--baseline: a report that does not judge an encoder; make one with sslbd detect")
    if results.get("method") != method:
        raise InputError(f"--baseline: a report of {str(results.get('method'))[:200]}, not of {method}")
    if results.get("data") != {"sha256": data.sha256} or results.get("n_images") != count:
        raise InputError("--baseline: a report on other images than --data; examine the clean encoder on these")
    value: Any = results.get("statistic")
    parts: Any = results.get("parts") or {}
    if not is_number(value) or not isinstance(parts, dict) or not all(map(is_number, parts.values())):
        raise InputError("--baseline: a report without a statistic: it is damaged")
    return float(value), {str(name): float(part) for name, part in parts.items()}


def examined(report: Report, method: str) -> str:
    """Return the digest of the encoder that an earlier report judges. Raises InputError where it names none."""
    named = screen.one(report, method).results.get("encoder")
    if not isinstance(named, dict) or not isinstance(named.get("sha256"), str):
        raise InputError("--baseline: a report that does not name its encoder: it is damaged")
    return str(named["sha256"])


# --- the report ---------------------------------------------------------------------------------------------------


def results_of(standing: Standing, clues: Clues) -> dict[str, Any]:
    """Return the numbers of the report."""
    opinion, (verdict, doubt) = standing.opinion, standing.verdict()
    witness = opinion.witness
    return {
        "verdict": verdict,
        "doubt": doubt or None,
        "search_space": opinion.search_space,
        "statistic": opinion.statistic,
        "parts": opinion.parts or None,
        "decisive": standing.decisive,
        "threshold": opinion.threshold,
        "p_value": standing.p_value,
        "false_alarms": standing.false_alarms,
        "n_baseline": len(standing.pool),
        "baseline_statistics": [float(value) for value in standing.pool],
        "witness": witness and {"area": witness.area, "success": opinion.success, "n_held": len(clues.held)},
        "n_images": len(clues.images),
        "details": opinion.summary,
    }


def arrays_of(opinion: Opinion, clues: Clues) -> dict[str, np.ndarray]:
    """Return the arrays of the report: the witness, and what it does to some held-out images."""
    data = dict(opinion.extras)
    if (witness := opinion.witness) is not None:
        rows = spread(len(clues.held), SHOWN)
        clean = torch.from_numpy(clues.held[rows])
        data["witness/keep"] = witness.keep.float().cpu().numpy()
        data["witness/add"] = witness.add.float().cpu().numpy()
        data["sheet/clean"], data["sheet/triggered"] = clean.numpy(), witness.stamp(clean).cpu().numpy()
    return data | {f"pictures/{name}": images for name, images in opinion.pictures.items()}


def witness_of(report: Report, option: str) -> Witness:
    """Return the trigger that a report on an encoder holds, of several methods the only one, or the only one found.

    Raises InputError where it holds none, several, or a damaged one.
    """
    report = screen.only(report, lambda part: "witness/keep" in part.data, option)
    keep, add = (report.data.get(f"witness/{part}") for part in ("keep", "add"))
    if keep is None or add is None:
        raise InputError(f"{option}: the report holds no trigger; make one with sslbd detect --method decree")
    fits = keep.ndim == add.ndim == 3 and keep.shape[0] in (1, 3) and add.shape[0] == 3
    fits &= keep.shape[1:] == add.shape[1:] and keep.dtype == add.dtype == np.float32
    if not fits or not np.isfinite(keep).all() or not np.isfinite(add).all():
        raise InputError(f"{option}: the trigger that the report holds is damaged")
    return Witness(torch.from_numpy(np.array(keep)), torch.from_numpy(np.array(add)))
