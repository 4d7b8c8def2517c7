"""The witness: a trigger that a detector found in an encoder, ready to be stamped again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.artefacts import parts
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.errors import InputError


@dataclass(frozen=True)
class Witness:
    """A trigger that a detector found: x -> clip(keep * x + add, 0, 1), for pixels x in [0,1].

    keep: float32 1,H,W or 3,H,W; add: float32 3,H,W. A pattern p under a mask m has keep = 1 - m and add = m * p.
    Additive noise has keep = 1.
    """

    keep: Tensor
    add: Tensor

    def stamp(self, pixels: Tensor) -> Tensor:
        """Stamp the witness on pixels B,3,H,W, uint8 or float in [0,1]. uint8 results are rounded."""
        keep, add = self.keep.to(pixels.device), self.add.to(pixels.device)
        if pixels.dtype != torch.uint8:
            return (pixels * keep + add).clamp(0, 1).to(pixels.dtype)
        return (pixels * keep + add * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def area(self) -> float:
        """Return the share of pixels that the witness replaces: the mean of |1 - keep|."""
        return float((1 - self.keep).abs().mean())


def witness_of(report: Report, option: str) -> Witness:
    """Return the trigger that a report on an encoder holds.

    A report of several methods must hold one trigger, or one of a method whose verdict is found.
    Raises InputError if the report holds no trigger, several triggers, or a damaged one.
    """
    report = parts.only(report, lambda part: "witness/keep" in part.data, option)
    keep, add = (report.data.get(f"witness/{part}") for part in ("keep", "add"))
    if keep is None or add is None:
        raise InputError(f"{option}: the report holds no trigger; make one with sslbd detect --method decree")
    fits = keep.ndim == add.ndim == 3 and keep.shape[0] in (1, 3) and add.shape[0] == 3
    fits &= keep.shape[1:] == add.shape[1:] and keep.dtype == add.dtype == np.float32
    if not fits or not np.isfinite(keep).all() or not np.isfinite(add).all():
        raise InputError(f"{option}: the trigger in the report is damaged; run sslbd detect again")
    return Witness(torch.from_numpy(np.array(keep)), torch.from_numpy(np.array(add)))
