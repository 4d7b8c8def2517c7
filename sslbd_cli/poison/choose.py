"""Choose what to poison: how many images and which rows. With labels, also measure how alike the rows are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sslbd_cli.artefacts.files import read_text
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Selector, SelectorPool
from sslbd_cli.words import reason

LARGEST = 1 << 30  # bytes of a file of row numbers


@dataclass(frozen=True, kw_only=True)
class PoisonCount:
    """Say how much to poison by exactly one of: a share of the dataset, a share of a class, a count."""

    rate: float | None = None
    class_rate: float | None = None
    count: int | None = None

    def images(self, total: int, in_class: float | None) -> int:
        """Return the number of images. Raises InputError if it rounds to 0 or if the class is unknown."""
        if self.count is not None:
            return self.count
        if self.class_rate is not None:
            if in_class is None:
                raise InputError(
                    "--class-rate needs labels, and --select label a --target; give --rate or --count instead"
                )
            count = round(self.class_rate * in_class)
        else:
            assert self.rate is not None
            count = round(self.rate * total)
        if count < 1:
            raise InputError(f"the rate gives no image at all of {total}; raise it or give --count")
        return count


@dataclass(frozen=True)
class Consistency:
    """Hold the most frequent true class of the chosen rows, the rows of this class, and their share (the CCR)."""

    target: int
    count: int
    rate: float


def ready(dataset: Dataset, selector: Selector, pool: SelectorPool) -> SelectorPool:
    """Return the pool, with labels if the selector needs them. Raises InputError if the selector lacks anything."""
    name = f"--select {selector.name}"
    if selector.needs == "feats" and pool.feats is None:
        raise InputError(f"{name} compares features: give --encoder ENCODER or --features FILE")
    if selector.needs == "listed_rows" and pool.listed_rows is None:
        raise InputError(f"{name} needs --indices FILE, one row number per line")
    return replace(pool, labels=dataset.need_labels(name)) if selector.needs == "labels" else pool


def amount(dataset: Dataset, selector: Selector, pool: SelectorPool, budget: PoisonCount) -> int:
    """Return how many images to poison.

    A class rate is a share of the target class. A selector that needs no labels may have no target; the rate is then a
    share of an average class, N / classes, as no-label backdoors count (arXiv 2404.06694).
    """
    in_class: float | None = None
    if dataset.labels is not None and pool.target is not None:
        in_class = int((dataset.labels == pool.target).sum())
    elif selector.needs != "labels" and pool.target is None and pool.classes:
        in_class = pool.count / pool.classes
    return budget.images(pool.count, in_class)


def choose(dataset: Dataset, selector: Selector, pool: SelectorPool, count: int, seed: int) -> np.ndarray:
    """Choose `count` rows, ascending. Raises InputError if the selector lacks something, or finds too few rows."""
    return selector(ready(dataset, selector, pool), count, generator(seed, "select"))


def consistency(labels: np.ndarray, rows: np.ndarray) -> Consistency:
    """Measure by true labels how alike the chosen rows are; for evaluation only. A tie goes to the lower class."""
    counts = np.bincount(labels[rows])
    target = int(counts.argmax())
    return Consistency(target, int(counts[target]), float(counts[target] / len(rows)))


def other_target(dataset: Dataset, selector: Selector, rows: np.ndarray, target: int | None) -> str:
    """Return a warning if a selector without labels chose mostly images of another class than the target, else "".

    Pre-training ties the trigger to what the images show, whatever target the user names.
    """
    if dataset.labels is None or target is None or selector.needs == "labels":
        return ""
    alike, hits = consistency(dataset.labels, rows), int((dataset.labels[rows] == target).sum())
    if hits == alike.count:
        return ""
    name, most = dataset.classes[target], dataset.classes[alike.target]
    counts = f"{alike.count} of the {len(rows)} chosen images are {most}, {hits} are {name}"
    return f"--target {name}: {counts}; --select {selector.name} reads no labels, so the trigger will be tied to {most}"


def report(dataset: Dataset, rows: np.ndarray, target: int | None, count: int, total: int) -> list[str]:
    """Return one line on how many of `total` images are poisons, and with labels one on how alike the rows are.

    rows: the images that the `count` poisons are made from.
    """
    share = f"{count} of {total} images (rate {count / total:.4f}"
    if dataset.labels is None:
        return [share + ")"]
    if target is not None:
        in_class, hit = int((dataset.labels == target).sum()), float((dataset.labels[rows] == target).mean())
        share += f", class rate {hit * count / max(in_class, 1):.4f} of {dataset.classes[target]}"
    alike = consistency(dataset.labels, rows)
    most = dataset.classes[alike.target] + (", the emergent target" if target is None else "")
    return [share + ")", f"consistency rate (CCR) {alike.rate:.4f}: {alike.count} of {len(rows)} are {most}"]


def read_rows(path: str, count: int) -> np.ndarray:
    """Read a text file of row numbers (see parse_rows). Raises InputError if it is none."""
    try:
        text = read_text(path, LARGEST)
        if not text.isascii():
            raise InputError("not a text file; write one row number per line")
        return parse_rows(text, count)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; name a text file of row numbers") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_rows(text: str, count: int) -> np.ndarray:
    """Read row numbers 0 ... count-1, one per line, as int64 in the file's order. Blank lines are skipped.

    Raises InputError, which names the line, if a number is malformed, out of range or repeated, or if there is none.
    """
    line_of_row: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        if not word:
            continue
        if not (word.isascii() and word.isdigit() and len(word) < 19):
            raise InputError(f"line {number} is not a row number ({word[:20]!r}); write one number per line")
        row = int(word)
        if row >= count:
            raise InputError(f"line {number}: row {row} of {count} images; give numbers 0 to {count - 1}")
        if row in line_of_row:
            raise InputError(f"line {number} repeats row {row} of line {line_of_row[row]}; list each row once")
        line_of_row[row] = number
    if not line_of_row:
        raise InputError("lists no row; write one number per line")
    return np.fromiter(line_of_row, np.int64, len(line_of_row))
