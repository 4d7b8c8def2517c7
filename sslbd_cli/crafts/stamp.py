"""The plain craft: the trigger on the chosen images themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslbd_cli.core import canvas
from sslbd_cli.core.bases import Craft, Crafted, Material, Trigger
from sslbd_cli.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Stamp(Craft):
    """Stamp the chosen images (SSL-Backdoor, no-label backdoors, CTRL)."""

    def reference_count(self, count: int) -> int:
        return count

    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        if count != len(material.references):
            raise InputError(
                f"--craft stamp makes one poison of each chosen image, not {count} of {len(material.references)}; "
                "give as many of both"
            )
        stamped = canvas.stamp(material.references, trigger, gen, "train")
        return Crafted(stamped.images, stamped.boxes, torch.arange(count))
