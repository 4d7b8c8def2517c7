"""The plain craft: stamp the trigger on the chosen images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslbd_cli.errors import InputError
from sslbd_cli.poison.contract import Craft, Crafted, Material
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True, kw_only=True)
class Stamp(Craft):
    """Stamp the chosen images (SSL-Backdoor, no-label backdoors, CTRL)."""

    def reference_count(self, count: int) -> int:
        return count

    def craft(self, material: Material, trigger: Trigger, count: int, gen: torch.Generator) -> Crafted:
        if count != len(material.references):
            raise InputError(
                f"--craft stamp makes one poison of each chosen image, not {count} of {len(material.references)}; "
                "ask for as many poisons as images"
            )
        stamped, boxes = trigger.stamp_all(material.references.numpy(), gen, "train")
        return Crafted(torch.from_numpy(stamped), boxes, torch.arange(count))
