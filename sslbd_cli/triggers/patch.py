"""The patch trigger: a square of random blocks, of one colour or of a checkerboard, as in BadNets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.triggers._patches import Patched

#: The trigger of no-label backdoors. They call it a checkerboard, but its centre and three corners are white.
CHECKERBOARD = ((0, 0, 1), (0, 1, 0), (1, 0, 1))


@dataclass(frozen=True, kw_only=True)
class Patch(Patched):
    """Paste a square of random colour blocks, of one colour or of a checkerboard (BadNets, SSL-Backdoor, BadEncoder).

    SSL-Backdoor: patch:size=50,where=random on 224-pixel images. BadEncoder: patch:size=10,fill=white on 32-pixel ones.
    No-label backdoors: patch:size=3,where=center,fill=checkerboard on 32-pixel images.

    Source: Gu et al., 2017 (BadNets); Saha et al., CVPR 2022, section 4; Jia et al., S&P 2022, figure 3.
    Destroyed by: crops that leave it out. Grayscale keeps its outline; blur keeps its coarse colours.
    """

    fill: str = key("blocks", "blocks (random saturated colours), checkerboard, chess, white, black, or six hex digits")
    blocks: int = key(4, "cells per side, for fill=blocks and fill=chess", low=1, high=64)
    seed: int = key(10, "seed of the blocks")

    def __post_init__(self) -> None:
        super().__post_init__()
        colour(self.fill)

    def pattern(self, pixels: int) -> Tensor:
        """Return the patch, float 3,pixels,pixels. Blocks have saturated colours, like the HTBA triggers."""
        solid = colour(self.fill)
        cells = min(self.blocks, pixels)
        if solid is not None:
            cell_colours = solid.view(3, 1, 1)
        elif self.fill == "checkerboard":
            cell_colours = torch.tensor([CHECKERBOARD] * 3).float()
        elif self.fill == "chess":
            cell_colours = (torch.arange(cells)[:, None] + torch.arange(cells)).remainder(2).float().expand(3, -1, -1)
        else:
            cell_colours = torch.randint(0, 2, (3, cells, cells), generator=generator(self.seed, "patch")).float()
        nearest = torch.arange(pixels) * cell_colours.shape[-1] // pixels
        return cell_colours[:, nearest][:, :, nearest]


def colour(fill: str) -> Tensor | None:
    """Return the colour that `fill` names, float 3 in [0,1], or None for a pattern. Raises InputError for others."""
    if fill in ("blocks", "checkerboard", "chess"):
        return None
    digits = {"white": "ffffff", "black": "000000"}.get(fill, fill)
    try:
        if len(digits) != 6 or not digits.isalnum():
            raise ValueError
        return torch.tensor(list(bytes.fromhex(digits))) / 255
    except ValueError:
        raise InputError(
            f"patch: fill={fill}: expected blocks, checkerboard, chess, white, black or six hexadecimal digits"
        ) from None
