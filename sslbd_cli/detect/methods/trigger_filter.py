"""Filter inputs by a trigger that DECREE found in the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.artefacts import kinds
from sslbd_cli.core.features import embed
from sslbd_cli.core.loader import image_parts
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _found
from sslbd_cli.triggers._patches import digest

LEARNED = 512  # clean images on which the target of the trigger is learned


@dataclass(frozen=True, kw_only=True)
class TriggerFilter(InputDetector):
    """Flag inputs that match a trigger found in the encoder, by embedding or by pixels (after DECREE).

    `sslbd detect --method decree` saves the trigger that it found in its report. score=target is the cosine of an
    input's embedding with the mean embedding of clean images that carry this trigger. score=pattern is the correlation
    of the input's pixels with the trigger's under its mask. This is a weak filter: an inverted trigger seldom looks
    like the planted one, and if target images are common, clean images embed near the target, too.
    """

    cue = "that match the trigger found in the encoder"

    file: str = key("", "path of the report; its bytes enter the history by digest", is_path=True)
    sha256: str = key("", "digest the report must have (filled in when it is first read)", expert=True)
    score: str = key(
        "target", "match by the embedding that the trigger leads to, or by its pixels", choices=("target", "pattern")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sha256:  # a guard holds what it needs, and its report may be gone
            object.__setattr__(self, "sha256", digest(self.name, self.file, ""))

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        digest(self.name, self.file, self.sha256)
        witness = _found.witness_of(kinds.read(self.file, kinds.Report), f"{self.name}:file={self.file}")
        keep, add = (_scale_to(part, images).to(setting.device.torch) for part in (witness.keep, witness.add))
        scaled_witness = _found.Witness(keep, add)
        feats = embed(
            setting.encoder, images[:LEARNED], setting.session, lambda x: scaled_witness.stamp(x.to(keep.device))
        )
        return {"target": unit(unit(feats).mean(0, keepdim=True))[0], "keep": keep, "add": add}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        target = unit(setting.embed(images)) @ state["target"]
        parts = (torch.from_numpy(np.array(images[some])) for some in image_parts(images, target.device.type))
        pattern = torch.cat([match(part.to(target.device), state["keep"], state["add"]) for part in parts])
        columns = {"target": target.double().cpu().numpy(), "pattern": pattern.double().cpu().numpy()}
        return Observation.of(columns, self.score)


def match(pixels: Tensor, keep: Tensor, add: Tensor) -> Tensor:
    """Return the correlation, N, of images uint8 N,3,H,W with a trigger's pattern, pixels weighed by its mask.

    All pixels have equal weights for a trigger that hides nothing (added noise).
    """
    weight = (1 - keep).clamp(min=0).expand(add.shape)
    weight = weight if float(weight.sum()) > 1e-6 else torch.ones_like(add)
    weight = weight / weight.sum()
    x, p = pixels.float() / 255, add
    x = x - (weight * x).sum((1, 2, 3), keepdim=True)
    p = p - (weight * p).sum()
    across = (weight * x * p).sum((1, 2, 3))
    size = ((weight * x.square()).sum((1, 2, 3)) * (weight * p.square()).sum()).sqrt()
    return across / size.clamp(min=1e-9)


def _scale_to(part: Tensor, images: np.ndarray) -> Tensor:
    """Scale a part of the trigger to the size of the images, as `--trigger witness` does."""
    shape = images.shape[2:]
    if tuple(part.shape[1:]) == shape:
        return part
    return F.interpolate(part[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]
