"""Make images for `detect` to judge when the user gives none: clean images, alone and with a panel of triggers.

The panel holds every trigger of the shelf that needs no file, with its defaults, the triggers that the encoder's
history names, and the trigger that the user names. No detector is told what is stamped on the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.history import History
from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
from sslbd_cli.core.device import generator
from sslbd_cli.core.watch import Voice
from sslbd_cli.data.source import SourceWish
from sslbd_cli.detect import significance
from sslbd_cli.detect.image_verdict import BEYOND_CHANCE, SETTLE, Ruling, few, is_foreign, more_than, settle
from sslbd_cli.detect.kin import Suspect
from sslbd_cli.detect.kinship import Kinship
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger

AUX, EACH = 1600, 60  # built-in images to learn and calibrate on, and those that each trigger is stamped on
SMALLEST, LARGEST = 16, 256  # pixels that the built-in source draws
MOST_DOCUMENTED = 16  # triggers of a history that are judged; anyone may have written it
USUAL = ("patch:size=10,fill=white", "patch:size=0.22,where=random")  # BadEncoder's and SSL-Backdoor's own patches


@dataclass(frozen=True)
class Panel:
    """Images to judge, in groups of `each` images: the first group is clean, every other carries one trigger.

    triggers: the trigger of each group, empty for the first. origins: why it is there (common, documented or given).
    judged: the images that detectors of inputs judge. aux: those that they learn and calibrate on. clean: those that
    detectors of encoders search with. boxes: int64, where each judged image's trigger is, a row per image.
    """

    judged: Dataset
    aux: Dataset
    clean: Dataset
    triggers: tuple[str, ...]
    origins: tuple[str, ...]
    each: int
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))

    def suspect(self, group: int) -> Suspect:
        """Return the trigger of a group with its images, and the same images without it."""
        clean, stamped = (self.judged.images[self.rows(at)] for at in (0, group))
        trigger: Trigger = plugin.parse("trigger", self.triggers[group])
        return Suspect(trigger, clean, stamped, self.boxes[self.rows(group)])

    def rows(self, group: int) -> slice:
        """Return the rows of a group among the judged images."""
        return slice(group * self.each, (group + 1) * self.each)


def make(
    encoder: Encoder, aux: Dataset | None, trigger: Trigger | None, limit: int | None, seed: int, voice: Voice
) -> Panel:
    """Make the images, and tell the user what is judged.

    aux: the user's own images; some are taken out to be judged. None takes built-in images.

    Raises InputError if built-in images cannot have the encoder's size, or if a trigger does not fit the images.
    """
    each = min(EACH, limit or EACH)
    clean = aux if aux is not None else _drawn(encoder.size, AUX + each, seed)
    if len(clean.images) <= each:
        raise InputError(f"--aux holds {len(clean.images)} images, of which {each} are judged; give more, or --data")
    order = torch.randperm(len(clean.images), generator=generator(seed, "panel")).numpy()
    base, rest = clean.take(np.sort(order[:each])), clean.take(np.sort(order[each:]))
    known = {str(one): (one, origin) for one, origin in _triggers(encoder, trigger, voice)}
    images, boxes = [base.images], [np.zeros((each, 4), np.int64)]
    for one, _ in known.values():
        stamped, places = one.stamp_all(base.images, generator(seed, "panel", str(one)), "test")
        images.append(stamped)
        boxes.append(places.numpy())
    _say(voice, aux is None, each, [origin for _, origin in known.values()])
    return Panel(
        judged=Dataset(images=paging.join(images)),
        aux=rest,
        clean=clean,
        triggers=("", *known),
        origins=("", *(origin for _, origin in known.values())),
        each=each,
        boxes=np.concatenate(boxes),
    )


def _drawn(size: int, count: int, seed: int) -> Dataset:
    """Draw built-in images of the encoder's size."""
    if not SMALLEST <= size <= LARGEST:
        span = f"{SMALLEST} to {LARGEST} pixels, the encoder takes {size}"
        raise InputError(f"Missing option '--data': built-in images have {span}; give images as --data, or as --aux")
    shapes = plugin.parse("source", "shapes")(
        SourceWish(size=size, count=count, seed=generator(seed, "built in").initial_seed() % (1 << 31))
    )
    dataset: Dataset = shapes.dataset
    return dataset


def _triggers(encoder: Encoder, given_trigger: Trigger | None, voice: Voice) -> Iterator[tuple[Trigger, str]]:
    """Yield each trigger of the panel with its origin. A trigger may come twice: the last origin counts."""
    for spec in (*plugin.own("trigger"), *USUAL):  # the same on every machine, whatever else is installed
        try:
            yield plugin.parse("trigger", spec), "common"
        except InputError:  # it needs a file
            continue
    specs = list(dict.fromkeys(documented(encoder.history)))
    if len(specs) > MOST_DOCUMENTED:
        voice.warn(f"the encoder's history names {len(specs)} triggers; the last {MOST_DOCUMENTED} are judged")
    for spec in specs[-MOST_DOCUMENTED:]:
        try:
            yield plugin.parse("trigger", spec, paths="refuse"), "documented"
        except InputError as error:
            voice.warn(f"the encoder's history names a trigger that cannot be made here: {error}")
    if given_trigger is not None:
        yield given_trigger, "given"


def documented(history: History) -> Iterator[str]:
    """Yield the triggers that a history names."""
    for entry in history:
        specs = entry["args"].get("--trigger", [])
        yield from (spec for spec in (specs if isinstance(specs, list) else [specs]) if isinstance(spec, str))


def _say(voice: Voice, is_built_in: bool, each: int, origins: list[str]) -> None:
    """Tell the user what is judged, and what that means for the answer."""
    counts = f"{each} clean images, and the same with each of {len(origins)} triggers"
    if "documented" in origins:
        counts += f" ({origins.count('documented')} named by the encoder's own history)"
    if not is_built_in:
        voice.say(f"no --data: judging {counts}; the images are taken out of --aux")
        return
    voice.warn(
        f"no --data and no --aux: judging {counts}; all images are synthetic, and a trigger that works"
        " on real images may fail on them: give clean images of your own as --aux"
    )


# --- the verdict on each trigger ------------------------------------------------------------------------------------

#: Compares a trigger with its kin, given its scores, float64 n.
Meet = Callable[[Suspect, np.ndarray], Kinship]


@dataclass
class _Row:
    """What is known of one trigger. tail: the probability of so many flags by chance; excess: and of so many more than
    by a clean encoder, 0 without one. Both are corrected for the triggers, as `more_than_kin` is. is_foreign: the clean
    encoder does not react to the trigger (`image_verdict.is_foreign`), so no kin are needed."""

    flagged: int
    tail: float
    adjusted: float = 1.0
    excess: float = 0.0
    is_foreign: bool = False
    kinship: Kinship | None = None
    more_than_kin: float = 1.0

    def is_flagged(self, alpha: float) -> bool:
        return self.adjusted < BEYOND_CHANCE and self.excess <= alpha

    def stands_out(self, alpha: float) -> bool:
        return self.is_flagged(alpha) and (self.is_foreign or self.more_than_kin <= alpha)

    def p_value(self) -> float:
        return max(self.adjusted, self.excess, 0.0 if self.is_foreign else self.more_than_kin)


def rule(report: Report, panel: Panel, ruling: Ruling, control: Ruling | None, meet: Meet | None) -> Report:
    """Judge the images of each trigger by themselves. The smallest p-value, corrected for the triggers, decides.

    control: how a clean encoder is judged on the same images. A trigger is only found if the clean encoder is flagged
    less on the images of that very trigger. meet: compares a trigger with its kin. Unless the clean encoder settles it
    (`image_verdict.is_foreign`), a trigger is only found if it stands out from them, by a p-value of at most alpha, the
    share of clean encoders that may be found to have a backdoor. A bound, which is told where the triggers are, needs
    no kin. The verdict holds for the triggers of the panel alone.
    """
    rows, alpha = _rows(report, panel, ruling, control), report.results["alpha"]
    is_sound = not ruling.findings.doubt and rows[0].tail >= BEYOND_CHANCE
    if meet is None:
        for row in rows:
            row.more_than_kin = 0.0 if row.excess < BEYOND_CHANCE else 1.0
    elif is_sound:
        _meet_kin(rows, panel, ruling, meet, alpha)
    best = min(range(1, len(rows)), key=lambda at: (rows[at].p_value(), rows[at].tail))
    verdict, doubt = _verdict(report, panel, ruling, control, rows, best)
    search_space = f"{len(rows) - 1} triggers on {panel.each} images each: {report.results['search_space']}"
    shown = panel.triggers[best] if rows[best].is_flagged(alpha) and is_sound else None
    lacks_control = verdict != "found" and any(row.kinship is not None and bool(row.kinship.doubt) for row in rows)
    false_alarms = None if meet is None or rows[best].is_foreign else alpha
    changed = {"verdict": verdict, "doubt": doubt or None, "lacks_control": lacks_control,
               "false_alarms": false_alarms, "p_value": rows[best].p_value(), "panel_trigger": shown,
               "search_space": search_space}  # fmt: skip
    entries = [_entry(panel, at, row, control is not None, alpha) for at, row in enumerate(rows)]
    return replace(report, results=report.results | changed | {"panel": entries})


def _rows(report: Report, panel: Panel, ruling: Ruling, control: Ruling | None) -> list[_Row]:
    """Count the flags of each group, and correct the p-values for the number of triggers."""
    shape, scale = (len(panel.triggers), panel.each), _scale(report, panel)
    flagged = ruling.flagged.reshape(shape)
    rows = [_Row(hits, significance.exceedance_tail(hits, *scale)) for hits in flagged.sum(1).tolist()]
    for row, adjusted in zip(rows[1:], significance.holm([row.tail for row in rows[1:]]), strict=True):
        row.adjusted = adjusted
    if control is not None:
        theirs = control.flagged.reshape(shape)
        excess = significance.holm([more_than(flagged[at], theirs[at]) for at in range(1, len(rows))])
        for at, more in enumerate(excess, start=1):
            rows[at].excess = more
            rows[at].is_foreign = more < BEYOND_CHANCE and is_foreign(
                flagged[at], theirs[at], *_scale(report, panel)[1:]
            )
    return rows


def _scale(report: Report, panel: Panel) -> tuple[int, int, float]:
    """Return the images of a group, the calibration images and alpha."""
    return panel.each, report.results["n_calibration"], report.results["alpha"]


def _meet_kin(rows: list[_Row], panel: Panel, ruling: Ruling, meet: Meet, alpha: float) -> None:
    """Compare the triggers that are flagged with their kin, those flagged most first, until one stands out."""
    for at in sorted(range(1, len(rows)), key=lambda at: (max(rows[at].adjusted, rows[at].excess), rows[at].tail)):
        if not rows[at].is_flagged(alpha):
            return
        if not rows[at].is_foreign:
            rows[at].kinship = kinship = meet(panel.suspect(at), ruling.findings.scores.values[panel.rows(at)])
            rows[at].more_than_kin = min(1.0, kinship.p_value * _weight(panel, at))
        if rows[at].stands_out(alpha):
            return


def _weight(panel: Panel, at: int) -> int:
    """Return what a trigger's p-value is multiplied by, for the number of triggers (Bonferroni, weighted).

    Triggers that somebody named share one half of the false alarms, common ones the other.
    """
    is_common = [origin == "common" for origin in panel.origins[1:]]
    alike = is_common.count(is_common[at - 1])
    return alike if alike == len(is_common) else 2 * alike


def _verdict(
    report: Report, panel: Panel, ruling: Ruling, control: Ruling | None, rows: list[_Row], best: int
) -> tuple[str, str]:
    """Return the verdict, and the reason if it is `inconclusive`. best: the trigger of the smallest p-value."""
    count, row = panel.each * (len(rows) - 1), rows[best]
    if ruling.findings.doubt:
        return "inconclusive", ruling.findings.doubt
    if rows[0].tail < BEYOND_CHANCE:
        return "inconclusive", f"images without any trigger are flagged as well; {SETTLE}, or more images as --aux"
    if row.stands_out(report.results["alpha"]):
        return "found", ""
    if row.kinship is not None:
        reason = row.kinship.reason(panel.triggers[best], row.more_than_kin)
        return "inconclusive", f"{reason}; {settle(control)}, or give images of your own as --data"
    if min(each.adjusted for each in rows[1:]) < BEYOND_CHANCE:
        return "inconclusive", "the clean encoder is flagged as much: triggers alone draw attention"
    all_flagged = significance.exceedance_tail(panel.each, *_scale(report, panel))
    return few(sum(each.flagged for each in rows[1:]), count, all_flagged * (len(rows) - 1))


def _entry(panel: Panel, at: int, row: _Row, has_control: bool, alpha: float) -> dict[str, Any]:
    """Return the entry of a group in the report."""
    is_clean, kinship = at == 0, row.kinship
    kin = dict.fromkeys(("n_kin", "n_kin_beaten", "p_value_more_than_kin")) if kinship is None else kinship.row()
    return {
        "trigger": panel.triggers[at] or None, "origin": panel.origins[at] or None, "flagged": row.flagged,
        "n": panel.each, "p_value": row.tail, "p_value_adjusted": None if is_clean else row.adjusted,
        "p_value_more_than_clean_encoder": row.excess if has_control and not is_clean else None, **kin,
        "stands_out": not is_clean and row.stands_out(alpha),
    }  # fmt: skip
