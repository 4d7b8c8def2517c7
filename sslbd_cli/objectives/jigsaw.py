"""Jigsaw (Noroozi and Favaro 2016): tell in which of many orders the nine tiles of an image were laid out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core import tiles
from sslbd_cli.core.bases import Objective
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.plugin import key
from sslbd_cli.core.ssl import mlp

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe

EPS = 1e-3  # variance of a tile's noise floor, in normalised units: flat tiles stay dark instead of turning to noise


@dataclass(frozen=True, kw_only=True)
class Jigsaw(Objective):
    """Recognise the order of nine shuffled image tiles (Noroozi and Favaro 2016).

    One encoder embeds each tile; a linear map of the nine embeddings names the order. Against shortcuts, tiles are cut
    at random within their cells, so edges do not continue; half the images are grey and half of the others lose the
    axis along which lenses blur colours. Brightness still betrays neighbours, as in SSL-Backdoor's code; norm=tile
    evens it out, as Noroozi and Favaro do. Tiles are not enlarged, as in both papers: in equal time on 32-pixel images
    that learned the puzzle better than feed=16, and feed=32 was nine times slower without being better by then.
    """

    permutations: int = key(100, "orders to tell apart, far from each other (the papers' 2000 suit large sets)",
                            low=2, high=10000)  # fmt: skip
    tile: int = key(0, "side of a tile in pixels; 0 is three quarters of a cell, as the papers' 64 of 85", low=0)
    feed: int = key(0, "side at which the encoder sees a tile; 0 is as cut; transformers need their images' side",
                    low=0, high=1024)  # fmt: skip
    norm: str = key("image", "what is normalised: the image, or each tile by itself", choices=("image", "tile"))
    gray: float = key(0.5, "share of grey images", low=0, high=1)
    projection: float = key(0.5, "share of images that lose their green-magenta contrast", low=0, high=1)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, jitter=0.0, gray=self.gray),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        assert isinstance(encoder, ImageEncoder)
        cell, feed = encoder.size // tiles.GRID, self.feed or self.side(encoder.size)
        if not 0 < self.side(encoder.size) <= cell:
            raise InputError(f"jigsaw: tile={self.tile} does not fit the {cell}-pixel cells of {encoder.size} pixels")
        if not takes(encoder, feed):
            raise InputError(f"jigsaw: {encoder.arch} does not take {feed}-pixel tiles; give feed={encoder.size}")
        orders = tiles.Orders(self.permutations)
        head = mlp(tiles.CELLS * dim, self.permutations)
        return nn.ModuleDict({"encoder": encoder, "orders": orders, "head": head})

    def side(self, size: int) -> int:
        """Return the side of the tiles cut from images of `size` pixels."""
        return self.tile or round(size // tiles.GRID * 64 / 85)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        encoder = learner["encoder"]
        assert isinstance(encoder, ImageEncoder)
        (view,) = views
        puzzle = torch.randint(self.permutations, (len(view),), device=view.device)
        faded = torch.rand(len(view), device=view.device) < self.projection
        x = encoder.normalise(tiles.drop_green_magenta(view, faded))
        side, cell = self.side(encoder.size), encoder.size // tiles.GRID
        shifts = torch.randint(cell - side + 1, (len(x), tiles.CELLS, 2), device=x.device)
        pieces = tiles.cut(x, learner["orders"](puzzle), shifts, side)  # 9B,3,side,side
        if self.norm == "tile":
            var, mean = torch.var_mean(pieces, (2, 3), correction=0, keepdim=True)
            pieces = (pieces - mean) / (var + EPS).sqrt()
        if self.feed not in (0, side):
            pieces = F.interpolate(pieces, size=self.feed, mode="bilinear", antialias=self.feed < side)
        feats = encoder.encoder(pieces).reshape(len(x), -1)  # B,9D; the network itself, for tiles are no whole images
        return F.cross_entropy(learner["head"](feats).float(), puzzle)


@torch.no_grad()
def takes(encoder: ImageEncoder, size: int) -> bool:
    """Tell whether an encoder's network runs on images of `size` pixels."""
    was_training = encoder.training
    try:
        encoder.eval().encoder(torch.zeros(1, 3, size, size, device=encoder.mean.device))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        encoder.train(was_training)
    return True
