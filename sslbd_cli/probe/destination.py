"""Where a trigger sends the answers of a classifier, for an encoder whose target nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sslbd_cli.core import metrics

Tables = Sequence[np.ndarray]  # per seed: confusion matrices int64 C,C
ROWS = 20  # classes to list; the report holds the rise of every class
#: Heads under which a backdoor shows that another head misses: an authors' victim had an ASR of 0.94 under mlp and of
#: 1.00 under knn, and of 0.13 under the linear head.
OTHER_HEADS = ("mlp", "knn")


def most_affected(clean: Tables, triggered: Tables) -> int:
    """Return the class whose share of the answers the trigger raises most."""
    return int(metrics.rise(list(clean), list(triggered)).argmax())


def answered(clean: Tables, triggered: Tables, which: int, total: int | None = None) -> dict[str, Any]:
    """Return the shares of clean and of triggered images that are answered by one class; None where there is no image.

    total: the number of images, if some of them got no answer.
    """
    tables = {"answered_clean": clean, "answered_triggered": triggered}
    return {name: _share(each, which, total) if total or each[0].sum() else None for name, each in tables.items()}


def rows(clean: Tables, triggered: Tables, classes: Sequence[str], control: tuple[Tables, Tables] | None) -> list[Any]:
    """Return a row per class: its shares of the answers and their rise, and the same by a clean encoder's `control`.

    The classes stand by rise. If there are many, only those of the largest rise are listed.
    """
    rise = metrics.rise(list(clean), list(triggered))
    listed = np.argsort(-rise, kind="stable")[:ROWS].tolist()
    return [
        {"class": classes[which], **_row(clean, triggered, which), "baseline": control and _row(*control, which)}
        for which in listed
    ]


def is_beyond_chance(clean: Tables, triggered: Tables, which: int) -> bool:
    """Return whether the interval of a class's share on triggered images lies above that on clean images."""
    return bool(_share(triggered, which)["low"] > _share(clean, which)["high"])


def other_heads(head: str) -> str:
    """Return the advice to look with other heads."""
    return " and ".join(f"--head {other}" for other in OTHER_HEADS if other != head)


def _row(clean: Tables, triggered: Tables, which: int) -> dict[str, Any]:
    rise = float(metrics.rise(list(clean), list(triggered))[which])
    return {"clean": _share(clean, which), "triggered": _share(triggered, which), "rise": rise}


def _share(tables: Tables, which: int, total: int | None = None) -> dict[str, Any]:
    """Return a class's share of the answers. The interval holds for all classes together, so that one may be picked."""
    counts = [(int(table[:, which].sum()), total or int(table.sum())) for table in tables]
    return metrics.share(counts, metrics.quantile(len(tables[0])))
