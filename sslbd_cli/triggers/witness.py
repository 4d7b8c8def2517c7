"""The witness trigger: replay the trigger that a detector found in an encoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.artefacts import kinds
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _found
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._patches import digest
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class WitnessTrigger(Trigger):
    """Replay the trigger that `sslbd detect` found in an encoder and saved in its report.

    `sslbd probe --trigger witness:file=detection.h5` measures its effect on a downstream classifier, on images that
    the search did not use. It is scaled bilinearly to images of another size.

    Source: reversed triggers, as in Neural Cleanse (Wang et al., S&P 2019) and DECREE (Feng et al., CVPR 2023).
    Destroyed by: whatever destroys the trigger that was found.
    """

    file: str = key("", "path of the report (the history records its digest)", is_path=True)
    sha256: str = key("", "digest that the report must have (set at the first reading)", expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sha256", digest(self.name, self.file, self.sha256))

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        keep, add = (resident(self._fitted, part, *x.shape[2:], like=x) for part in ("keep", "add"))
        return x * keep + add

    def _fitted(self, name: str, height: int, width: int) -> Tensor:
        part: Tensor = getattr(_read(self.file, self.sha256), name)
        if part.shape[1:] != (height, width):
            part = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
        return part


@functools.lru_cache(maxsize=4)
def _read(file: str, sha256: str) -> _found.Witness:
    """Read the report once per content."""
    return _found.witness_of(kinds.read(file, kinds.Report), f"--trigger witness:file={file}")
