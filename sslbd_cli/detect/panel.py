"""Make images for `detect` to judge when the user gives none: clean images, alone and with a panel of triggers.

The panel holds every trigger of the shelf that needs no file, with its defaults, the triggers that the encoder's
history names, and the trigger that the user names. No detector is told what is stamped on the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.kinds import Dataset, Encoder, History, Report
from sslbd_cli.core import metrics
from sslbd_cli.core.device import generator
from sslbd_cli.core.watch import Voice
from sslbd_cli.data.source import SourceWish
from sslbd_cli.detect.image_verdict import BEYOND_CHANCE, Ruling, few, more_than
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger

AUX, EACH = 1600, 60  # built-in images to learn and calibrate on, and those that each trigger is stamped on
SMALLEST, LARGEST = 16, 256  # pixels that the built-in source draws
USUAL = ("patch:size=10,fill=white", "patch:size=0.22,where=random")  # BadEncoder's and SSL-Backdoor's own patches


@dataclass(frozen=True)
class Panel:
    """Images to judge, in groups of `each` images: the first group is clean, every other carries one trigger.

    triggers: the trigger of each group, empty for the first. origins: why it is there (common, documented or given).
    judged: the images that detectors of inputs judge. aux: those that they learn and calibrate on. clean: those that
    detectors of encoders search with.
    """

    judged: Dataset
    aux: Dataset
    clean: Dataset
    triggers: tuple[str, ...]
    origins: tuple[str, ...]
    each: int


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
    images = [base.images]
    for one, _ in known.values():
        images.append(one.stamp_all(base.images, generator(seed, "panel", str(one)), "test")[0])
    _say(voice, aux is None, each, [origin for _, origin in known.values()])
    return Panel(
        judged=Dataset(images=paging.join(images)),
        aux=rest,
        clean=clean,
        triggers=("", *known),
        origins=("", *(origin for _, origin in known.values())),
        each=each,
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
    for spec in dict.fromkeys(documented(encoder.history)):
        try:
            yield plugin.parse("trigger", spec), "documented"
        except InputError as error:
            voice.warn(f"the encoder's history names a trigger that cannot be made here: {error}")
    if given_trigger is not None:
        yield given_trigger, "given"


def documented(history: History) -> Iterator[str]:
    """Yield the triggers that a history names, its inputs' histories included."""
    for entry in history:
        specs = entry["args"].get("--trigger", [])
        yield from (spec for spec in (specs if isinstance(specs, list) else [specs]) if isinstance(spec, str))
        for source in entry["inputs"]:
            yield from documented(tuple(source.get("history", ())))


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


def rule(report: Report, panel: Panel, ruling: Ruling, control: Ruling | None) -> Report:
    """Judge the images of each trigger by themselves. The smallest p-value, corrected for the triggers, decides.

    control: how a clean encoder is judged on the same images. A trigger is only found if the clean encoder is flagged
    less on the images of that very trigger. The verdict holds for the triggers of the panel alone.
    """
    results, shape = report.results, (len(panel.triggers), panel.each)
    flagged = ruling.flagged.reshape(shape)
    hits, scale = flagged.sum(1).tolist(), (panel.each, results["n_calibration"], results["alpha"])
    tails = [metrics.exceedance_tail(k, *scale) for k in hits]
    adjusted, excess = metrics.holm(tails[1:]), [0.0] * (shape[0] - 1)
    if control is not None:
        theirs = control.flagged.reshape(shape)
        excess = metrics.holm([more_than(flagged[row], theirs[row]) for row in range(1, len(theirs))])
    rows = [
        {"trigger": spec or None, "origin": origin or None, "flagged": k, "n": panel.each, "p_value": p,
         "p_value_adjusted": q, "p_value_more_than_clean_encoder": None if control is None else more}
        for spec, origin, k, p, q, more in zip(
            panel.triggers, panel.origins, hits, tails, [None, *adjusted], [None, *excess], strict=True)
    ]  # fmt: skip
    least = metrics.exceedance_tail(panel.each, *scale) * len(adjusted)
    verdict, doubt = few(sum(hits[1:]), panel.each * len(adjusted), least)
    if ruling.findings.doubt:
        verdict, doubt = "inconclusive", ruling.findings.doubt
    elif tails[0] < BEYOND_CHANCE:
        verdict, doubt = "inconclusive", "images without any trigger are flagged as well"
    elif any(max(pair) < BEYOND_CHANCE for pair in zip(adjusted, excess, strict=True)):
        verdict, doubt = "found", ""
    elif min(adjusted) < BEYOND_CHANCE:
        verdict, doubt = "inconclusive", "the clean encoder is flagged as much: triggers alone draw attention"
    search_space = f"{shape[0] - 1} triggers on {panel.each} images each: {results['search_space']}"
    changed = {"verdict": verdict, "doubt": doubt or None, "p_value": min(adjusted), "search_space": search_space}
    return replace(report, results=results | changed | {"panel": rows})
