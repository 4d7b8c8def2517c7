"""Judge images by a detector that is blind to the truth, then measure the detector by the truth and by controls.

Other images set the threshold for inputs. The samples of a training set are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.captions import decode
from sslbd_cli.artefacts.kinds import Dataset, Report
from sslbd_cli.core import metrics
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect import significance
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.detect.kin import Suspect
from sslbd_cli.detect.kinship import Kinship
from sslbd_cli.errors import InputError
from sslbd_cli.poison.plant import plant
from sslbd_cli.triggers._contract import Trigger

BEYOND_CHANCE = 0.001  # verdict found: so many flags among images like --aux have a smaller probability
LOUD = 0.5  # share of a trigger's images that are flagged at least, if a clean encoder alone is to settle it
SETTLE = "give a clean encoder of the same kind as --baseline"  # what settles most doubts


@dataclass(frozen=True, kw_only=True)
class Case:
    """Images to judge, with what is known of them. Detectors get `evidence` alone; the rest is for evaluation.

    poisoned: bool N. boxes: int N,4, where the trigger is, or would be in a clean input. alpha: share of clean inputs
    that may be flagged, None for samples. is_paired: the second half are the images of the first half with `trigger`.
    Then the second half alone is tested for more flags than by chance, because the two images of a pair are often
    flagged together.
    """

    evidence: Evidence
    alpha: float | None = None
    poisoned: np.ndarray | None = None
    boxes: np.ndarray | None = None
    is_paired: bool = False
    trigger: Trigger | None = None

    def suspect(self) -> Suspect | None:
        """Return the trigger whose images are tested, and the same images without it; None without a trigger."""
        if self.trigger is None or self.boxes is None:
            return None
        clean, stamped = np.split(self.evidence.images, 2)
        return Suspect(self.trigger, clean, stamped, self.boxes[len(clean) :])

    def truth(self) -> np.ndarray | None:
        """Return the truth if there are both clean and poisoned images, else None."""
        return self.poisoned if self.poisoned is not None and 0 < self.poisoned.sum() < len(self.poisoned) else None


def make_samples_case(data: Dataset, detector: ImageDetector) -> Case:
    """Gather a training set to judge. A bound is told the recorded boxes; without them it raises InputError."""
    captions = decode(data.need_captions(f"--method {detector.name}")) if detector.reads_captions else None
    if data.truth is None:
        if detector.is_bound:
            raise InputError(f"{detector.name}: a bound needs the recorded truth, which --data lacks")
        return Case(evidence=Evidence(data.images, captions=captions))
    boxes, poisoned = data.truth.box, data.truth.poisoned
    evidence = Evidence(data.images, boxes=boxes if detector.is_bound else None, captions=captions)
    return Case(evidence=evidence, poisoned=poisoned, boxes=boxes)


def make_case(data: Dataset, aux: Dataset | None, trigger: Trigger | None, alpha: float, seed: int) -> Case:
    """Gather the images to judge: those of `data`, and the same images with the trigger if there is one.

    aux: None for a guard, which has learned already.
    """
    clean = Evidence(data.images).aux if aux is None else aux.images
    if trigger is None:
        evidence = Evidence(data.images, clean)
        if data.truth is None:
            return Case(evidence=evidence, alpha=alpha)
        poisoned = data.truth.poisoned
        return Case(evidence=evidence, alpha=alpha, poisoned=poisoned, boxes=_boxes(data.truth.box, poisoned))
    if data.truth is not None and data.truth.poisoned.any():
        raise InputError("--data already holds poisoned images; give --trigger with clean ones")
    count = len(data.images)
    triggered_data = plant(data, trigger, np.arange(count), "replace", seed, "test")
    assert triggered_data.truth is not None
    return Case(
        evidence=Evidence(paging.join([data.images, triggered_data.images]), clean),
        alpha=alpha,
        poisoned=np.arange(2 * count) >= count,
        boxes=np.tile(triggered_data.truth.box, (2, 1)),
        is_paired=True,
        trigger=trigger,
    )


def tell(case: Case, detector: ImageDetector) -> Case:
    """Tell a bound on detectors of inputs where the triggers are. Raises InputError if the truth is not known."""
    if case.poisoned is None or case.boxes is None:
        raise InputError(f"{detector.name}: a bound needs the truth: give --trigger, or --data that records it")
    return replace(case, evidence=replace(case.evidence, boxes=case.boxes * case.poisoned[:, None]))


def _boxes(boxes: np.ndarray, poisoned: np.ndarray) -> np.ndarray | None:
    """Give clean images the boxes of poisoned ones in turn, so that both kinds lose equal areas."""
    if not poisoned.any():
        return None
    all_boxes = np.array(boxes)
    all_boxes[~poisoned] = np.resize(boxes[poisoned], (int((~poisoned).sum()), 4))
    return all_boxes


def need_calibration(detector: ImageDetector, aux: int, alpha: float) -> int:
    """Return the number of calibration images. Raises InputError if these, or those left to learn on, are too few."""
    least = significance.least_calibration(alpha)

    def enough(images: int) -> bool:
        count = detector.calibration_count(images)
        return count >= least and images - count >= detector.least_learning

    count = detector.calibration_count(aux)
    if not enough(aux):
        need = f"--alpha {alpha:g} needs {least} calibration images"
        if count >= least:
            need, count = f"{detector.name} needs {detector.least_learning} images to learn on", aux - count
        raise InputError(f"{need}, but {aux} of --aux leave {count}; give {_first(enough, aux)}")
    return count


def _first(enough: Callable[[int], bool], start: int) -> int:
    """Return the first number from `start` on that is enough. All larger numbers must be enough, too."""
    least, most = start, start
    while not enough(most):
        least, most = most, 2 * most + 1
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle + 1, most)
    return most


# --- the answer, without truth ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ruling:
    """The decision by a detector's scores. flagged: bool N.

    counted_flags: bool M, flags of the images that are tested. p_value: the probability of so many flags by chance.
    least: the p-value if all of them were flagged. A detector of samples decides by itself and has none of these.
    """

    findings: Findings
    flagged: np.ndarray
    threshold: float | None = None
    counted_flags: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    p_value: float | None = None
    least: float = 0.0

    def excess(self, clean: Ruling) -> float:
        """Return the p-value of more flags than a clean encoder has on the same images."""
        return more_than(self.counted_flags, clean.counted_flags)


def more_than(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the exact one-sided McNemar p-value of two encoders' flags of the same images, bool N each."""
    alone, others = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return metrics.binomial_tail(alone, alone + others, 0.5)


def judge(detector: ImageDetector, net: ImageEncoder, case: Case, session: Session) -> Ruling:
    """Run a detector on the evidence. Inputs are flagged if their conformal p-value is at most alpha."""
    return rule(detector.run(net, case.evidence, session), case)


def rule(findings: Findings, case: Case) -> Ruling:
    """Decide by scores and calibration. Detectors of samples have decided already."""
    if case.alpha is None:
        assert findings.scores.flagged is not None
        return Ruling(findings, findings.scores.flagged)
    calibration = findings.scores.calibration
    threshold = significance.conformal_threshold(calibration, case.alpha)
    flagged: np.ndarray = findings.scores.values > threshold
    counted_flags = flagged[len(flagged) // 2 :] if case.is_paired else flagged
    tail, least = (
        significance.exceedance_tail(hits, len(counted_flags), len(calibration), case.alpha)
        for hits in (int(counted_flags.sum()), len(counted_flags))
    )
    return Ruling(findings, flagged, threshold, counted_flags, tail, least)


def verdict(ruling: Ruling, clean: Ruling | None, limit: float = BEYOND_CHANCE) -> tuple[str, str]:
    """Return the verdict, and the reason if it is `inconclusive`.

    Inputs: found if more of them are flagged than chance explains and, with a clean encoder, more than by that encoder,
    by a p-value below `limit`.
    Samples: found if any is flagged and flags are evidence. A clean encoder plays no part, because a sample that it
    flags as well is poisoned all the same.
    """
    if ruling.findings.doubt:
        return "inconclusive", ruling.findings.doubt
    if ruling.p_value is None:
        return ("found" if ruling.flagged.any() and ruling.findings.scores.is_evidence else "nothing found"), ""
    if ruling.p_value >= BEYOND_CHANCE:
        return few(int(ruling.counted_flags.sum()), len(ruling.counted_flags), ruling.least)
    if clean is not None and ruling.excess(clean) >= limit:
        return "inconclusive", "the clean encoder flags as many: the judged images differ from --aux for any encoder"
    return "found", ""


def settle(clean: Ruling | None) -> str:
    """Return what settles a doubt that a trigger's kin leave, or why a clean encoder has not settled it."""
    return SETTLE if clean is None else "the clean encoder reacts, too, or the encoder misses most of the images"


def is_foreign(flagged: np.ndarray, clean_flagged: np.ndarray, n_calibration: int, alpha: float) -> bool:
    """Tell whether an encoder reacts to a trigger as its clean encoder does not, bool N each, the same images.

    It flags most of the images, and the clean encoder no more than chance explains. Clean encoders differ, too, in how
    much they flag a harmless change; but a change that one of them hardly ever misses, another notices.
    """
    hits, count = int(clean_flagged.sum()), len(clean_flagged)
    is_quiet = significance.exceedance_tail(hits, count, n_calibration, alpha) >= BEYOND_CHANCE
    return is_quiet and float(flagged.mean()) >= LOUD and more_than(flagged, clean_flagged) < BEYOND_CHANCE


def needs_kin(ruling: Ruling, clean: Ruling | None, case: Case) -> bool:
    """Tell whether a finding depends on the trigger's kin: if it is one, and no clean encoder settles it."""
    if case.alpha is None or verdict(ruling, clean, case.alpha)[0] != "found":
        return False
    if clean is None:
        return True
    n_calibration = len(ruling.findings.scores.calibration)
    return not is_foreign(ruling.counted_flags, clean.counted_flags, n_calibration, case.alpha)


def vouch(ruling: Ruling, clean: Ruling | None, kinship: Kinship | None, case: Case) -> tuple[str, str]:
    """Return the verdict on inputs whose finding needs a control: a clean encoder, or the kin of the trigger.

    kinship: None if the trigger is not known, or if the clean encoder settles it (`needs_kin`). The trigger stands out
    from its kin by a p-value of at most alpha, the share of clean encoders that may be found to have a backdoor.
    Without either, flags say no more than that the images differ from --aux, for whatever encoder.
    """
    limit = BEYOND_CHANCE if kinship is None or case.alpha is None else case.alpha
    answer, doubt = verdict(ruling, clean, limit)
    if answer != "found" or ruling.p_value is None:
        return answer, doubt
    if kinship is not None:
        is_own = case.alpha is not None and kinship.p_value <= case.alpha
        return ("found", "") if is_own else ("inconclusive", f"{kinship.reason(str(case.trigger))}; {settle(clean)}")
    if clean is not None:
        return "found", ""
    flagged, count = int(ruling.counted_flags.sum()), len(ruling.counted_flags)
    why = f"{flagged} of {count} images flagged, but they may differ from --aux for any encoder"
    if not len(case.evidence.aux):  # a guard holds its aux images' scores alone, and no clean encoder's
        return "inconclusive", f"{why}; judge them without --guard, and {SETTLE}"
    return "inconclusive", f"{why}; {SETTLE}, or --aux from where --data comes from"


def lacks_control(ruling: Ruling, clean: Ruling | None, kinship: Kinship | None) -> bool:
    """Tell whether inputs are flagged beyond chance, but no control could say whether a clean encoder's would be."""
    if ruling.p_value is None or verdict(ruling, clean)[0] != "found":
        return False
    return clean is None if kinship is None else bool(kinship.doubt)


def few(flagged: int, count: int, least: float) -> tuple[str, str]:
    """Return the verdict if chance explains the flags: inconclusive if there are too few images to tell.

    least: the p-value if all images were flagged.
    """
    if flagged and least >= BEYOND_CHANCE:
        return "inconclusive", f"{flagged} of {count} images flagged, and even all of so few could be chance; give more"
    return "nothing found", ""


# --- the detector against the truth -------------------------------------------------------------------------------


def measure(ruling: Ruling, case: Case) -> dict[str, Any]:
    """Return detection metrics against the truth; without truth they are None."""
    poisoned, scores = case.truth(), ruling.findings.scores
    if poisoned is None:
        return dict.fromkeys(("auroc", "average_precision", "tpr_at_fpr", "tpr", "fpr"))
    numbers = metrics.detection(scores.values, poisoned) | rates(ruling.flagged, poisoned)
    if case.alpha is None:
        numbers |= metrics.removal(ruling.flagged, poisoned)
        order = np.argsort(-scores.values, kind="stable") if scores.ranking is None else scores.ranking
        numbers["top_accuracy"] = metrics.top_accuracy(order, poisoned)
    if scores.windows is not None and case.boxes is not None:
        numbers["localisation"] = localise(scores, poisoned, case.boxes)
    return numbers


def localise(scores: Scores, poisoned: np.ndarray, boxes: np.ndarray) -> dict[str, Any]:
    """Return how well windows hit the triggers, over all poisoned images with a window and over the first ranked."""
    windows = scores.windows
    assert windows is not None
    has_window = (windows[:, 2] > 0) & poisoned & (boxes[:, 2] > 0)
    groups = {"all": np.flatnonzero(has_window)}
    if scores.ranking is not None:
        first = scores.ranking[: metrics.TOP[-1]]
        groups["top"] = first[has_window[first]]
    return {name: metrics.localisation(windows[rows], boxes[rows]) for name, rows in groups.items()}


def rates(flagged: np.ndarray, poisoned: np.ndarray) -> dict[str, float]:
    """Return the shares of poisoned and of clean images that are flagged."""
    return {"tpr": float(flagged[poisoned].mean()), "fpr": float(flagged[~poisoned].mean())}


def controls(ruling: Ruling, case: Case, clean: Ruling | None) -> dict[str, Any]:
    """Return the controls: the same images by a clean encoder, other rules and other scores."""
    evaluation, poisoned = ruling.findings.evaluation, case.truth()
    keep = None if case.boxes is None or poisoned is None else outside(case.boxes, case.evidence.images.shape[2:])
    numbers: dict[str, Any] = {} if clean is None else _clean_controls(ruling, clean, poisoned, keep)
    for name, flagged in evaluation.rules.items():
        numbers[f"flagged_{name}"] = int(flagged.sum())
        if poisoned is not None:
            numbers |= {f"{rate}_{name}": value for rate, value in rates(flagged, poisoned).items()}
    if poisoned is None:
        return numbers
    numbers |= {f"auroc_{name}": area(scores, poisoned) for name, scores in evaluation.controls.items()}
    if evaluation.outside is not None and keep is not None:
        numbers["auroc_outside_box"] = area(evaluation.outside(keep), poisoned)
    return numbers


def _clean_controls(
    ruling: Ruling, clean: Ruling, poisoned: np.ndarray | None, keep: np.ndarray | None
) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    if poisoned is not None:
        evaluation = clean.findings.evaluation
        numbers["auroc_clean_encoder"] = area(clean.findings.scores.values, poisoned)
        for name in ("rank", "relative", "absolute"):
            if name in evaluation.controls:
                numbers[f"auroc_{name}_clean_encoder"] = area(evaluation.controls[name], poisoned)
        if evaluation.outside is not None and keep is not None:
            numbers["auroc_outside_box_clean_encoder"] = area(evaluation.outside(keep), poisoned)
    numbers["flagged_clean_encoder"] = int(clean.flagged.sum())
    if ruling.p_value is None:
        return numbers
    return numbers | {
        "p_value_clean_encoder": clean.p_value,
        "p_value_more_than_clean_encoder": ruling.excess(clean),
    }


def area(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """Return the AUROC alone."""
    return metrics.auroc(scores, poisoned)["value"]


def outside(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Mark the pixels outside boxes N,4: bool N,H,W. Returns None if a box leaves less than a tenth of its image."""
    y, x = np.arange(shape[0])[None, :, None], np.arange(shape[1])[None, None, :]
    left, top, width, height = (boxes[:, i, None, None] for i in range(4))
    keep: np.ndarray = (x < left) | (x >= left + width) | (y < top) | (y >= top + height)
    return keep if keep.mean((1, 2)).min() >= 0.1 else None


def arrays(ruling: Ruling, case: Case) -> dict[str, np.ndarray]:
    """Return the arrays of the report."""
    scores, pictures = ruling.findings.scores, ruling.findings.pictures
    data = {"scores": scores.values}
    if case.alpha is None:
        data["flagged"] = ruling.flagged
    else:
        data["calibration"] = scores.calibration
        data["p_values"] = significance.conformal(scores.calibration, scores.values)
    if scores.windows is not None:
        data["windows"] = scores.windows
    if scores.ranking is not None:
        data["ranking"] = scores.ranking
    data |= {f"control/{name}": column for name, column in ruling.findings.evaluation.controls.items()}
    data |= {f"pictures/{name}": images for name, images in pictures.images.items()}
    if len(pictures.rows):
        data["pictures/score"] = scores.values[pictures.rows]
    if case.poisoned is not None:
        data["truth/poisoned"] = case.poisoned
        if len(pictures.rows):
            data["pictures/poisoned"] = case.poisoned[pictures.rows]
        if "found/rows" in pictures.arrays:
            data["found/poisoned"] = case.poisoned[pictures.arrays["found/rows"]]
    return data | pictures.arrays


def read_scores(report: Report, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, float64 N, and flags, bool N, of a dataset's images from a report on this dataset.

    Raises InputError for another kind of report, and for a report on other images.
    """
    results, scores, flagged = report.results, report.data.get("scores"), report.data.get("flagged")
    if report.command != "detect" or results.get("flags") != "samples" or scores is None or flagged is None:
        raise InputError("--report does not judge a training set; make one with sslbd detect --method poisoncam")
    judged_data = results.get("data")
    if not isinstance(judged_data, dict) or judged_data.get("sha256") != dataset.sha256:
        raise InputError("--report judges another dataset (its content differs); run sslbd detect on this one")
    shape = (len(dataset.images),)
    if scores.shape != shape or flagged.shape != shape or scores.dtype.kind != "f" or flagged.dtype != np.bool_:
        raise InputError(f"--report judges {len(scores)} of {shape[0]} images; run sslbd detect without --limit")
    if not np.isfinite(scores).all():
        raise InputError("--report holds scores that are not finite: it is damaged")
    return scores, flagged
