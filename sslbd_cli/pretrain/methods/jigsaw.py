"""Jigsaw (Noroozi and Favaro 2016): recognise in which of many orders the nine tiles of an image were laid out."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective
from sslbd_cli.pretrain.losses import mlp

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe


# --- Jigsaw puzzles (Noroozi and Favaro 2016): permutations of nine cells that lie far apart, and tiles of images

GRID = 3
CELLS = GRID * GRID


@functools.lru_cache(maxsize=4)
def permutations(count: int) -> Tensor:
    """Choose `count` permutations of the nine cells that lie far apart in Hamming distance: int64 count,9.

    The choice is greedy from the identity and not random. The authors' algorithm 1 takes the permutation with the
    largest mean distance to those chosen. We take the largest smallest distance; the mean breaks ties. This reaches the
    same mean (8.08 of 9 for 100 permutations, 8.00 for 2,000), and the closest two are 6 and 4 apart, not 2 and 2.
    """
    every = np.ascontiguousarray(_all_permutations().T)  # 9,9!: one row per cell, so that comparisons are contiguous
    total, nearest = np.zeros(every.shape[1], np.int32), np.full(every.shape[1], CELLS, np.uint8)
    orders = [0]
    while len(orders) < count:
        away = np.zeros(every.shape[1], np.uint8)
        for cell, piece in zip(every, every[:, orders[-1]], strict=True):
            away += cell != piece
        total += away
        np.minimum(nearest, away, out=nearest)
        far = np.flatnonzero(nearest == nearest.max())
        orders.append(int(far[total[far].argmax()]))
    return torch.from_numpy(every[:, orders].T.astype(np.int64))


def _all_permutations() -> np.ndarray:
    """List the permutations of nine things in lexicographic order: uint8 9!,9."""
    orders = np.zeros((1, 1), np.uint8)
    for things in range(2, CELLS + 1):
        first = np.repeat(np.arange(things, dtype=np.uint8), len(orders))[:, None]
        rest = np.tile(orders, (things, 1))
        orders = np.concatenate([first, rest + (rest >= first)], axis=1)
    return orders


class Orders(nn.Module):
    """Hold the orders of a training in its state: map numbers B to the cells of each slot, int64 B,9."""

    cells: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("cells", permutations(count).clone())

    def forward(self, numbers: Tensor) -> Tensor:
        return self.cells[numbers]


def drop_green_magenta(x: Tensor, rows: Tensor) -> Tensor:
    """Remove the colour axis (-1, 2, -1) from the rows, bool B, of B,3,H,W (Doersch 2015).

    Lenses blur this axis most. Grey pixels do not change. Saturated colours may leave [0,1] by a sixth.
    """
    axis = (3.0 * (torch.arange(3, device=x.device) == 1) - 1).div(6**0.5).view(1, 3, 1, 1)  # made on the device
    return x - rows.view(-1, 1, 1, 1) * axis * (x * axis).sum(1, keepdim=True)


def cut(images: Tensor, cells: Tensor, shifts: Tensor, side: int) -> Tensor:
    """Cut the tiles of cells B,K out of square images B,3,S,S: B*K,3,side,side.

    shifts: B,K,2, the place of each tile in its cell (down, right). Pixels that the grid leaves over form a margin.
    """
    size = images.shape[-1]
    cell = size // GRID
    margin = (size - GRID * cell) // 2
    corner = torch.stack([cells // GRID, cells % GRID], 2) * cell + margin + shifts  # B,K,2
    down, right = (corner[..., None] + torch.arange(side, device=images.device)).unbind(2)  # B,K,side
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    tiles = images[image, :, down[..., None], right[:, :, None]]  # B,K,side,side,3
    return tiles.permute(0, 1, 4, 2, 3).flatten(0, 1)


EPS = 1e-3  # floor of a tile's variance, in normalised units: flat tiles stay flat instead of becoming noise


@dataclass(frozen=True, kw_only=True)
class Jigsaw(Objective):
    """Recognise the order of nine shuffled image tiles (Noroozi and Favaro 2016).

    One encoder embeds each tile; a linear map of the nine embeddings predicts the order. Three measures prevent
    shortcuts: tiles are cut at random places in their cells, so edges do not continue; half the images are grey; half
    of the others lose the colour axis that lenses blur. Brightness still reveals neighbours, as in SSL-Backdoor's code;
    norm=tile removes it, as Noroozi and Favaro do. Tiles are not enlarged, as in both papers. On 32-pixel images and in
    equal time this learned the puzzle better than feed=16; feed=32 was nine times slower and not better by then.
    """

    permutations: int = key(100, "number of orders, far from each other (papers: 2000, for large datasets)",
                            low=2, high=10000)  # fmt: skip
    tile: int = key(0, "side of a tile in pixels; 0: three quarters of a cell (papers: 64 of 85)", low=0)
    feed: int = key(0, "side to which tiles are scaled for the encoder; 0: unscaled; transformers need the image side",
                    low=0, high=1024, expert=True)  # fmt: skip
    norm: str = key("image", "normalise the image, or each tile", choices=("image", "tile"), expert=True)
    gray: float = key(0.5, "share of grey images", low=0, high=1, expert=True)
    projection: float = key(0.5, "share of images that lose the green-magenta axis", low=0, high=1, expert=True)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, jitter=0.0, gray=self.gray),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        assert isinstance(encoder, ImageEncoder)
        cell, feed = encoder.size // GRID, self.feed or self.side(encoder.size)
        if not 0 < self.side(encoder.size) <= cell:
            raise InputError(
                f"jigsaw: tile={self.tile} does not fit the {cell}-pixel cells of {encoder.size} pixels; lower tile"
            )
        if not takes(encoder, feed):
            raise InputError(f"jigsaw: {encoder.arch} does not take {feed}-pixel tiles; give feed={encoder.size}")
        orders = Orders(self.permutations)
        head = mlp(CELLS * dim, self.permutations)
        return nn.ModuleDict({"encoder": encoder, "orders": orders, "head": head})

    def side(self, size: int) -> int:
        """Return the side of the tiles cut from images of `size` pixels."""
        return self.tile or round(size // GRID * 64 / 85)

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        encoder = learner["encoder"]
        assert isinstance(encoder, ImageEncoder)
        (view,) = views
        puzzle = torch.randint(self.permutations, (len(view),), device=view.device)
        faded = torch.rand(len(view), device=view.device) < self.projection
        x = encoder.normalise(drop_green_magenta(view, faded))
        side, cell = self.side(encoder.size), encoder.size // GRID
        shifts = torch.randint(cell - side + 1, (len(x), CELLS, 2), device=x.device)
        pieces = cut(x, learner["orders"](puzzle), shifts, side)  # 9B,3,side,side
        if self.norm == "tile":
            var, mean = torch.var_mean(pieces, (2, 3), correction=0, keepdim=True)
            pieces = (pieces - mean) / (var + EPS).sqrt()
        if self.feed not in (0, side):
            pieces = F.interpolate(pieces, size=self.feed, mode="bilinear", antialias=self.feed < side)
        with _exact_if_narrow(encoder, pieces):
            feats = encoder.encoder(pieces).reshape(len(x), -1)  # B,9D; bypasses the checks for whole images
        return F.cross_entropy(learner["head"](feats).float(), puzzle)


def _exact_if_narrow(encoder: ImageEncoder, pieces: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return the context for tiles: fp32 on a CPU if a convolution gets maps that are smaller than its stride.

    There, torch 2.14 leaves bf16 gradients of weights that meet no pixel uninitialised.
    """
    if pieces.device.type != "cpu" or not _narrows(str(encoder.arch), encoder.size, pieces.shape[-1]):
        return contextlib.nullcontext()
    return torch.autocast("cpu", enabled=False)


@functools.lru_cache(maxsize=4)
@torch.no_grad()
def _narrows(arch: str, size: int, side: int) -> bool:
    """Return whether tiles of `side` pixels become smaller in an architecture than the stride of the next layer."""
    is_narrow = False

    def look(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal is_narrow
        assert isinstance(conv, nn.Conv2d)
        is_narrow |= inputs[0].shape[-1] < conv.stride[0]

    with torch.device("meta"):  # shapes are enough
        net = plugin.parse("arch", arch).backbone(size).eval()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(look)
        net(torch.zeros(1, 3, side, side))
    return is_narrow


@torch.no_grad()
def takes(encoder: ImageEncoder, size: int) -> bool:
    """Return whether an encoder's network runs on images of `size` pixels."""
    was_training = encoder.training
    try:
        encoder.eval().encoder(torch.zeros(1, 3, size, size, device=encoder.mean.device))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        encoder.train(was_training)
    return True
