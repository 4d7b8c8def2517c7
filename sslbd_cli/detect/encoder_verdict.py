"""Judge an encoder: gather the images of the search, and compare its statistic with those of clean encoders.

A statistic means little by itself, because usual values differ by architecture, resolution and pre-training. Known
clean encoders give it a scale, as an empirical p-value. Without them a detector's own rule decides, stated with its
source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts import parts as report_parts
from sslbd_cli.artefacts.header import is_number
from sslbd_cli.artefacts.kinds import Dataset, Report, spread
from sslbd_cli.core.device import generator
from sslbd_cli.detect import significance
from sslbd_cli.detect.contract import Clues, EncoderDetector, Opinion
from sslbd_cli.errors import InputError

POOL = 4  # with fewer clean encoders, the detector's own rule decides
NO_THRESHOLD = f"it has no threshold of its own; give {POOL} clean encoders as --baseline"
HELD = 0.25  # share of the images held out of the search, to test the witness on
LEAST = 64  # least number of images, a quarter of them held out
SEARCH_PIXELS, HELD_PIXELS = 1 << 25, 1 << 22  # of large images, no more are searched with and held out
SHOWN = 8  # held-out images that the report shows with the witness


def gather(data: Dataset, detector: EncoderDetector, limit: int | None, seed: int) -> Clues:
    """Draw the images of a search: `limit` of them, spread evenly, a quarter of these held out at random.

    Of many or large images, fewer are drawn, so that their number does not decide how long the search takes: 668 to
    search with and 83 to hold out at 224 pixels. Raises InputError for fewer than 64 images, and if the detector needs
    labels that are missing.
    """
    data = data.limited(limit)
    labels = data.need_labels(f"--method {detector.name}") if detector.needs_labels else None
    images = data.images
    if len(images) < LEAST:
        raise InputError(f"{len(images)} images of --data are too few for an audit; give {LEAST} at least")
    order = torch.randperm(len(images), generator=generator(seed, "audit")).numpy()
    held_out_rows, search_rows = order[: int(HELD * len(order))], order[int(HELD * len(order)) :]
    pixels = images.shape[2] * images.shape[3]
    held_out_rows = np.sort(held_out_rows[: max(LEAST, HELD_PIXELS // pixels)])
    search_rows = np.sort(search_rows[: max(4 * LEAST, SEARCH_PIXELS // pixels)])
    clues = Clues(paging.take(images, search_rows), paging.take(images, held_out_rows))
    if labels is None:
        return clues
    return replace(clues, labels=labels[search_rows], held_out_labels=labels[held_out_rows], classes=data.classes)


# --- a statistic among clean encoders -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """An opinion among clean encoders. p_value: (1 + #{clean >= statistic}) / (n + 1), None without clean encoders.

    false_alarms: share of clean encoders that may be called backdoored, or None if the detector's own rule decides.
    With few clean encoders it is 1 / (n + 1), so that an encoder must exceed them all. decisive: of several searches,
    the one that stands out most among the clean encoders.
    """

    opinion: Opinion
    pool: np.ndarray
    p_value: float | None
    false_alarms: float | None
    decisive: str | None = None

    def verdict(self) -> tuple[str, str]:
        """Return the verdict, and the reason if it is `inconclusive`."""
        opinion = self.opinion
        if opinion.doubt:
            return "inconclusive", opinion.doubt
        if self.false_alarms is not None and self.p_value is not None:
            return ("found" if self.p_value <= self.false_alarms + 1e-12 else "nothing found"), ""
        if opinion.threshold is None:
            return "inconclusive", NO_THRESHOLD
        if opinion.statistic <= opinion.threshold:
            return "nothing found", ""
        if len(self.pool) and self.pool.max() > opinion.threshold:
            return "inconclusive", "a clean encoder exceeds the threshold, too; give more of them as --baseline"
        return "found", ""


def stand(opinion: Opinion, pool: Sequence[float], alpha: float, parts: Sequence[Mapping[str, float]] = ()) -> Standing:
    """Compare an opinion with clean encoders: those of `pool` and those that the opinion brings itself.

    parts: the statistics of each search on the encoders of `pool`. If several searches were made, they are compared
    part by part. Raises InputError if a clean encoder lacks parts.
    """
    clean_statistics = np.array([*pool, *opinion.clean_statistics], np.float64)
    own, others, decisive = opinion.statistic, clean_statistics, None
    if opinion.searches and len(clean_statistics) >= POOL:
        own, others, decisive = on_one_scale(opinion.parts, parts)
        opinion = replace(opinion, trigger=opinion.searches[decisive].trigger or opinion.trigger)
    p_value = float(significance.conformal(others, np.array([own]))[0]) if len(clean_statistics) else None
    if len(clean_statistics) < POOL:
        return Standing(opinion, clean_statistics, p_value, None)
    return Standing(opinion, clean_statistics, p_value, max(alpha, 1 / (len(clean_statistics) + 1)), decisive)


def on_one_scale(own: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> tuple[float, np.ndarray, str]:
    """Bring the parts of several encoders to one scale, and take the largest of each encoder.

    A part is scaled to its z, in standard deviations over all encoders, the one in question included. Returns the
    largest z of the encoder in question, those of the others, and the name of its largest part. All encoders are
    treated alike, so that the p-value stays valid: a clean encoder has any rank among clean ones with equal
    probability. Raises InputError if an encoder lacks parts.
    """
    if any(each.keys() != own.keys() for each in others):
        raise InputError("--baseline: a report without the statistic of every search; make it anew")
    values = np.array([[own[name], *(each[name] for each in others)] for name in own])
    # the median deviation of so few values is often tiny by chance: a clean encoder would look far out
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True).clip(1e-12)
    largest = z.max(0)
    return float(largest[0]), largest[1:], list(own)[int(z[:, 0].argmax())]


def statistic_of(report: Report, method: str, data: Dataset, count: int) -> tuple[float, dict[str, float]]:
    """Return the statistic of a clean encoder, and its parts, from an earlier report, to save the search.

    Raises InputError for a report by another method, or on other images.
    """
    results = report_parts.one(report, method).results
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


def read_encoder_digest(report: Report, method: str) -> str:
    """Return the digest of the encoder that an earlier report judges. Raises InputError where it names none."""
    encoder_entry = report_parts.one(report, method).results.get("encoder")
    if not isinstance(encoder_entry, dict) or not isinstance(encoder_entry.get("sha256"), str):
        raise InputError("--baseline: a report that does not name its encoder: it is damaged")
    return str(encoder_entry["sha256"])


# --- the report ---------------------------------------------------------------------------------------------------


def results_of(standing: Standing, clues: Clues) -> dict[str, Any]:
    """Return the numbers of the report."""
    opinion, (verdict, doubt) = standing.opinion, standing.verdict()
    n_held_out = len(clues.held_out_images)
    trigger = opinion.trigger
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
        "witness": trigger and {"area": trigger.witness.area, "success": trigger.success, "n_held": n_held_out},
        "n_images": len(clues.images),
        "details": opinion.summary,
    }


def arrays_of(opinion: Opinion, clues: Clues) -> dict[str, np.ndarray]:
    """Return the arrays of the report: the witness, and some held-out images without and with it."""
    data = dict(opinion.pictures.arrays)
    if opinion.trigger is not None:
        witness = opinion.trigger.witness
        rows = spread(len(clues.held_out_images), SHOWN)
        clean = torch.from_numpy(clues.held_out_images[rows])
        data["witness/keep"] = witness.keep.float().cpu().numpy()
        data["witness/add"] = witness.add.float().cpu().numpy()
        data["sheet/clean"], data["sheet/triggered"] = clean.numpy(), witness.stamp(clean).cpu().numpy()
    return data | {f"pictures/{name}": images for name, images in opinion.pictures.images.items()}
