"""Find the arrays of a report by name, check them, and draw their figures with plots.py.

A report may come from anywhere. If an array is missing or is not what its name promises, its figure is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.artefacts.results import DetectResults, ProbeResults, Results, read
from sslbd_cli.detect.image_verdict import BEYOND_CHANCE
from sslbd_cli.report import contact, plots
from sslbd_cli.report.contact import Suspects
from sslbd_cli.report.plots import CLEAN, INK, TRIGGERED, PictureRows
from sslbd_cli.words import split_commas

SHEET = 12  # sample images shown
FOUND = 20  # images of highest score shown for a detector of training images
MOST = 40  # triggers of a panel shown
EXAMPLES = 6  # clean images, and as many triggered ones, shown with the detector's pictures


@dataclass(frozen=True)
class Picture:
    """A figure. name: also of its file. png: the bytes. fixed: its colours carry meaning, so a dark page keeps them."""

    name: str
    caption: str
    png: bytes
    fixed: bool = False


def pictures(report: Report) -> list[Picture]:
    """Draw every figure that the arrays of a report allow."""
    kinds = (_sheet, _suspects, _panel, _triptychs, _map, _histogram, _retrieval, _roc, _confusions)
    return [picture for kind in kinds if (picture := kind(report)) is not None]


def across(reports: Sequence[tuple[str, Report]]) -> list[Picture]:
    """Draw the figures that compare several reports, each given with its label."""
    rows = [(label, _estimates(read(report))) for label, report in reports]
    rows = [(label, values) for label, values in rows if values]
    curves = {label: curve for label, report in reports if (curve := _judged(report)) is not None}
    compared = []
    if len(rows) > 1:
        caption = "Accuracy on clean images and attack success rate (ASR) of each encoder, with 95 % intervals."
        compared.append(Picture("overview", caption, plots.overview(rows)))
    if len(curves) > 1:
        curves_by_name = {f"{label}{_area(dict(reports)[label])}": curve for label, curve in curves.items()}
        kinds = {_positive(report) for label, report in reports if label in curves}
        positive = kinds.pop() if len(kinds) == 1 else "triggered"
        caption = f"ROC curves: share of {positive} images flagged against share of clean images flagged, by detector."
        compared.append(Picture("roc-all", caption, plots.roc(curves_by_name, positive=positive)))
    return compared


def sheet(clean: np.ndarray, triggered: np.ndarray | None, is_found: bool = False) -> Picture:
    """Draw the same images without and with the trigger, each uint8 K,3,H,W. is_found: a detector found the trigger."""
    rows, caption = [("clean", clean[:SHEET])], "Sample images."
    if triggered is not None:
        change = np.abs(triggered[:SHEET].astype(np.int16) - clean[:SHEET])
        factor = 255 // max(1, int(change.max()))  # make a faint trigger visible; the caption states the factor
        name = f"change ×{factor}" if factor > 1 else "change"
        rows += [("triggered", triggered[:SHEET]), (name, (change * factor).astype(np.uint8))]
        trigger_name = "the trigger that was found" if is_found else "the trigger"
        caption = f"The same images without and with {trigger_name}, and the change it makes"
        caption += f": at most {change.max()}/255, drawn {factor} times as large." if factor > 1 else "."
    return Picture("samples", caption, plots.board([PictureRows("", INK, rows)]), fixed=True)


# --- one figure each ----------------------------------------------------------------------------------------------


def _sheet(report: Report) -> Picture | None:
    clean, triggered = _images(report, "sheet/clean"), _images(report, "sheet/triggered")
    if clean is None:
        return None
    fits = triggered is not None and triggered.shape == clean.shape
    return sheet(clean, triggered if fits else None, _is_of_encoder(report))


def _suspects(report: Report) -> Picture | None:
    images, patches, trigger = (_images(report, f"found/{name}") for name in ("images", "patches", "trigger"))
    images, patches = (None if each is None else each[:FOUND] for each in (images, patches))
    if images is None and patches is None and trigger is None:
        return None
    windows, poisoned, scores = None, None, None
    caption = "What the detector takes for the trigger."
    if images is not None:
        windows = _windows(report, len(images))
        poisoned = None if (truth := _column(report, "found/poisoned", at_least=len(images))) is None else truth != 0
        scores = _column(report, "found/scores", at_least=len(images))
        caption = f"The {len(images)} training images of highest score"
        caption += "" if scores is None else ", each with its score"
        caption += ". The outlined window is where the detector saw the trigger." if windows is not None else "."
        if poisoned is not None:
            hits = int(poisoned[: len(images)].sum())
            blind = "" if _detected(report).sees_truth else ", which the detector never saw"
            caption += f" By the recorded truth{blind}, {hits} of them are poisoned."
    parts = Suspects(images, windows, scores, poisoned, patches, trigger)
    return Picture("found", caption, contact.contact(parts), fixed=True)


def _panel(report: Report) -> Picture | None:
    """Draw the share of flagged images under each trigger of a panel."""
    results, rows = _detected(report), []
    for row in results.panel:
        if row.flagged is None or row.n is None or not 0 <= row.flagged <= row.n or row.n < 1:
            return None
        origin = {"documented": " (documented)", "given": " (given)"}.get(row.origin or "", "")
        name = "no trigger" if row.trigger is None else split_commas(row.trigger)[0] + origin
        is_beyond = row.p_value_adjusted is not None and row.p_value_adjusted < BEYOND_CHANCE
        rows.append((name, row.flagged / row.n, is_beyond))
    if not rows or results.alpha is None:
        return None
    caption = (
        "Share of images flagged under each trigger. Coloured bars exceed chance, corrected for the number of triggers."
    )
    caption += "".join(f" {row.trigger} also stands out from harmless changes of its strength." for row in results.panel
                       if row.stands_out)  # fmt: skip
    return Picture("panel", caption, plots.bars(rows[:MOST], results.alpha))


def _map(report: Report) -> Picture | None:
    """Draw the embeddings of clean and triggered images on a plane."""
    clean, triggered = (_points(report, f"map/{name}") for name in ("clean", "triggered"))
    shares = _column(report, "map/variance", 2)
    if clean is None or triggered is None or shares is None or not np.isfinite(shares).all():
        return None
    target = _column(report, "map/of_target", len(clean))
    mine = np.zeros(len(clean), bool) if target is None else target != 0
    groups = [("clean", clean[~mine], CLEAN, "o"), ("clean, of the target class", clean[mine], "#009E73", "s")]
    groups.append(("triggered", triggered, TRIGGERED, "x"))
    caption = "Embeddings of test images on the two directions of largest variance (PCA of unit features). A backdoor"
    caption += " moves the triggered images away from their clean originals to one place."
    png = plots.places([group for group in groups if len(group[1])], (float(shares[0]), float(shares[1])))
    return Picture("map", caption, png)


def _triptychs(report: Report) -> Picture | None:
    arrays = {name[9:]: _images(report, name) for name in sorted(report.data) if name.startswith("pictures/")}
    rows = {name: images for name, images in arrays.items() if images is not None}
    first = ["input", "reconstruction", "error"]
    order = [name for name in first if name in rows] + [name for name in rows if name not in first]
    if not order or len({len(images) for images in rows.values()}) != 1:
        return None
    count = len(rows[order[0]])
    scores, poisoned = _column(report, "pictures/score", count), _column(report, "pictures/poisoned", count)
    threshold = _detected(report).threshold
    suspicion = np.zeros(count) if scores is None else np.nan_to_num(scores)
    ranked = np.argsort(-suspicion, kind="stable")
    if poisoned is None:
        what = "triggers searched" if _is_of_encoder(report) else "judged images"
        groups = [(f"{what}, most suspicious first", INK, ranked[: 2 * EXAMPLES])]
    else:
        hidden = poisoned[ranked] != 0
        groups = [
            ("clean images, from most to least suspicious", CLEAN, _spread(ranked[~hidden])),
            ("triggered images, most suspicious first", TRIGGERED, ranked[hidden][:EXAMPLES]),
        ]
    blocks = []
    for title, colour, example_rows in groups:
        captions = [] if scores is None else [_verdict(scores[row], threshold) for row in example_rows]
        if len(example_rows):
            blocks.append(PictureRows(title, colour, [(name, rows[name][example_rows]) for name in order], captions))
    if not blocks:
        return None
    caption = f"What the detector saw, from top to bottom: {', '.join(order)}."
    if scores is not None:
        caption += " Numbers are scores" + ("; ▲ marks those above the threshold." if threshold is not None else ".")
    return Picture("examples", caption, plots.board(blocks), fixed=True)


def _spread(ranked: np.ndarray) -> np.ndarray:
    """Take EXAMPLES images of a ranking, evenly spaced, both ends included."""
    places = np.unique(np.linspace(0, len(ranked) - 1, min(EXAMPLES, len(ranked))).astype(int))
    example_rows: np.ndarray = ranked[places]
    return example_rows


def _verdict(score: float, threshold: float | None) -> str:
    return f"{score:.3g}" + (" ▲" if threshold is not None and score > threshold else "")


def _histogram(report: Report) -> Picture | None:
    scores, calibration = _column(report, "scores"), _column(report, "calibration")
    if scores is None or not np.isfinite(scores).any():
        return None
    truth, flagged, by_itself = _judged(report), _flagged(report, len(scores)), _is_of_samples(report)
    prefix, threshold = "judged, ", _detected(report).threshold
    caption = "Scores of the detector. Calibration images alone, which carry no trigger, set the threshold."
    if by_itself:
        prefix, threshold, calibration = "", None, None
        caption = "Scores of the training images. The detector compares them with each other and uses no clean images."
    if truth is not None:
        known, poisoned = truth
        groups = {f"{prefix}clean": known[~poisoned], f"{prefix}{_positive(report)}": known[poisoned]}
    elif by_itself and flagged is not None and flagged.any():
        groups = {"not flagged": scores[~flagged], "flagged": scores[flagged]}
    else:
        groups = {"training images" if by_itself else "judged": scores}
    if calibration is not None:
        groups = {"calibration (known clean)": calibration} | groups
    return Picture("scores", caption, plots.histogram(groups, threshold))


def _retrieval(report: Report) -> Picture | None:
    truth, scores = _judged(report), _column(report, "scores")
    if truth is None or scores is None or not _is_of_samples(report):
        return None
    known, poisoned = truth
    flagged = _flagged(report, len(scores))
    if flagged is not None:
        flagged = flagged[~np.isnan(scores)]
    caption = "Precision and recall of the k images of highest score. The precision of images drawn at random is"
    caption += f" the base rate, {100 * poisoned.mean():.3g} %."
    if flagged is not None:
        caption += " The points mark the flagged images." if flagged.any() else " No image is flagged."
    return Picture("retrieval", caption, plots.retrieval(known, poisoned, flagged))


def _roc(report: Report) -> Picture | None:
    curve, results = _judged(report), _detected(report)
    if curve is None:
        return None
    whose = "training" if _is_of_samples(report) else "judged"
    caption = f"ROC curve of the {whose} images against the recorded truth, which the detector never sees."
    if results.sees_truth:
        caption = f"ROC curve of the {whose} images. This method is a bound: it knows the recorded truth."
    threshold = None if _is_of_samples(report) else results.threshold
    return Picture(
        "roc", caption, plots.roc({(results.name or "detector") + _area(report): curve}, threshold, _positive(report))
    )


def _confusions(report: Report) -> Picture | None:
    tables = {}
    for name in ("clean", "triggered"):
        table = report.data.get(f"confusion/{name}")
        if table is not None and table.ndim == 2 and 1 < table.shape[0] == table.shape[1] <= 2000:
            tables[f"{name} images"] = np.asarray(table, np.float64).clip(0)
    if not tables:
        return None
    caption = "Predictions of the probe. A bright column under triggered images: every class is taken for the target."
    return Picture("confusion", caption, plots.confusions(tables), fixed=True)


# --- results and arrays of a report that may hold anything --------------------------------------------------------


def _images(report: Report, name: str) -> np.ndarray | None:
    array = report.data.get(name)
    fits = array is not None and array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] in (1, 3)
    return array if fits and array is not None and array.size else None


def _column(report: Report, name: str, length: int | None = None, at_least: int = 1) -> np.ndarray | None:
    """Return an array as float64, or None unless it has one dimension and the length asked for."""
    array = report.data.get(name)
    if array is None or array.ndim != 1 or len(array) < at_least or (length is not None and len(array) != length):
        return None
    return np.asarray(array, np.float64)


def _points(report: Report, name: str) -> np.ndarray | None:
    """Return points on a plane as float64 K,2, or None if the array is anything else."""
    array = report.data.get(name)
    if array is None or array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != 2 or not len(array):
        return None
    return np.asarray(array, np.float64) if np.isfinite(array).all() else None


def _windows(report: Report, least: int) -> np.ndarray | None:
    """Return the windows of the images of highest score, int K,4, or None if all of them are empty."""
    array = report.data.get("found/windows")
    if array is None or array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 4 or len(array) < least:
        return None
    return array[:least] if (array[:least, 2:] > 0).all(1).any() else None


def _flagged(report: Report, length: int) -> np.ndarray | None:
    array = report.data.get("flagged")
    return array if array is not None and array.dtype == np.bool_ and array.shape == (length,) else None


def _is_of_samples(report: Report) -> bool:
    """Tell whether a detector judged training images. Then there are no calibration images and no threshold."""
    return _detected(report).judges == "samples"


def _is_of_encoder(report: Report) -> bool:
    """Tell whether a detector judged an encoder."""
    return _detected(report).judges == "encoder"


def _positive(report: Report) -> str:
    return "poisoned" if _is_of_samples(report) else "triggered"


def _judged(report: Report) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scores float K and truth bool K of the judged images, or None unless both kinds of image are there."""
    scores = _column(report, "scores")
    poisoned = None if scores is None else _column(report, "truth/poisoned", len(scores))
    if scores is None or poisoned is None:
        return None
    known = ~np.isnan(scores)
    kinds = poisoned[known] != 0
    return (scores[known], kinds) if 0 < kinds.sum() < len(kinds) else None


def _estimates(results: Results) -> dict[str, tuple[float, float, float]]:
    """Return what the overview draws of one probe: name -> value, low, high."""
    if not isinstance(results, ProbeResults):
        return {}
    control = results.baseline and results.baseline.asr
    shares = {"clean accuracy": results.clean_accuracy, "ASR": results.asr, "ASR, clean encoder": control}
    rows = {}
    for name, estimate in shares.items():
        if estimate and estimate.value is not None and estimate.low is not None and estimate.high is not None:
            rows[name] = estimate.value, estimate.low, estimate.high
    return rows


def _area(report: Report) -> str:
    auroc = _detected(report).auroc
    return "" if auroc is None or auroc.value is None else f", AUROC {auroc.value:.3f}"


def _detected(report: Report) -> DetectResults:
    """Return the results of one detector; of any other report, empty results."""
    results = read(report)
    return results if isinstance(results, DetectResults) else DetectResults()
