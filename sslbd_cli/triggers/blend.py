"""The blend trigger: a picture laid faintly over the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.core.device import generator
from sslbd_cli.plugin import key
from sslbd_cli.triggers import _boxes as geometry
from sslbd_cli.triggers._contract import Phase, Trigger
from sslbd_cli.triggers._patches import Sticker, digest, read_sticker, share_of
from sslbd_cli.triggers._resident import resident


@dataclass(frozen=True, kw_only=True)
class Blend(Trigger):
    """Blend a picture into the whole image: a smooth random one or a file (Chen et al. 2017).

    x' = (1 - alpha) x + alpha p. A picture from a file is stretched to the image's size. The papers' pictures (Hello
    Kitty, noise) are not shipped; give them by file. Its own transparency (alpha) counts, too.

    Source: Chen et al., arXiv 1712.05526; also an ablation of no-label backdoors with alpha 0.2.
    Destroyed by: strong colour jitter. Crops keep an enlarged part of it.
    """

    alpha: float = key(0.2, "opacity of the picture", low=0.001, high=1)
    file: str = key("", "path of the picture; empty: draw one from the seed (the history records the file's digest)",
                    is_path=True)  # fmt: skip
    sha256: str = key("", "digest that the file must have (set at the first reading)", expert=True)
    cells: int = key(8, "drawn picture: random colours per side, smoothed in between", low=1, high=64, expert=True)
    seed: int = key(10, "seed of the drawn picture")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file:
            object.__setattr__(self, "sha256", digest(self.name, self.file, self.sha256))

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator, phase: Phase) -> Tensor:
        height, width = x.shape[2:]
        is_opaque = self._own(height, width) is None
        share = self.alpha if is_opaque else resident(self._share, height, width, like=x)
        return geometry.mix(x, resident(self._layer, height, width, like=x), share)

    def _layer(self, height: int, width: int) -> Tensor:
        return self.picture(height, width) * share_of(self._own(height, width), self.alpha)

    def _share(self, height: int, width: int) -> Tensor:
        return torch.as_tensor(share_of(self._own(height, width), self.alpha))

    def _own(self, height: int, width: int) -> Tensor | None:
        """Return the picture's own opacity, float 1,height,width in [0,1], or None if all of it is opaque."""
        return self._sticker(height, width).alpha if self.file else None

    def _sticker(self, height: int, width: int) -> Sticker:
        return read_sticker(self.name, self.file, self.sha256, height, width)

    def picture(self, height: int, width: int) -> Tensor:
        """Return the picture, float 3,height,width in [0,1]."""
        if self.file:
            return self._sticker(height, width).colours
        colours = torch.rand(1, 3, self.cells, self.cells, generator=generator(self.seed, "blend"), dtype=torch.float64)
        smooth = nn.functional.interpolate(colours, (height, width), mode="bicubic", align_corners=True)
        return smooth[0].clamp(0, 1)  # bicubic interpolation overshoots
