"""Jigsaw puzzles (Noroozi and Favaro 2016): far-apart permutations of nine cells, and tiles cut out of images."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn

GRID = 3
CELLS = GRID * GRID


@functools.lru_cache(maxsize=4)
def permutations(count: int) -> Tensor:
    """Choose `count` permutations of the nine cells that lie far apart in Hamming distance: int64 count,9.

    Greedy from the identity, without random draws. The authors' algorithm 1 takes the permutation of largest mean
    distance to those chosen; here the smallest distance comes first and the mean breaks ties. That reaches the same
    mean (8.08 of 9 for 100 permutations, 8.00 for 2,000), and no two lie closer than 6 and 4 instead of 2 and 2.
    """
    every = np.ascontiguousarray(_all_permutations().T)  # 9,9!: a row per cell, so that comparisons run along memory
    total, nearest = np.zeros(every.shape[1], np.int32), np.full(every.shape[1], CELLS, np.uint8)
    chosen = [0]
    while len(chosen) < count:
        away = np.zeros(every.shape[1], np.uint8)
        for cell, piece in zip(every, every[:, chosen[-1]], strict=True):
            away += cell != piece
        total += away
        np.minimum(nearest, away, out=nearest)
        far = np.flatnonzero(nearest == nearest.max())
        chosen.append(int(far[total[far].argmax()]))
    return torch.from_numpy(every[:, chosen].T.astype(np.int64))


def _all_permutations() -> np.ndarray:
    """List the permutations of nine things in lexicographic order: uint8 9!,9."""
    found = np.zeros((1, 1), np.uint8)
    for things in range(2, CELLS + 1):
        first = np.repeat(np.arange(things, dtype=np.uint8), len(found))[:, None]
        rest = np.tile(found, (things, 1))
        found = np.concatenate([first, rest + (rest >= first)], axis=1)
    return found


class Orders(nn.Module):
    """The orders of a training, kept with its state: numbers B to the cells of each slot, int64 B,9."""

    cells: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("cells", permutations(count).clone())

    def forward(self, numbers: Tensor) -> Tensor:
        return self.cells[numbers]


def drop_green_magenta(x: Tensor, rows: Tensor) -> Tensor:
    """Remove the colour axis (-1, 2, -1) from the rows, bool B, of B,3,H,W: what lenses blur most (Doersch 2015).

    Grey pixels stay as they are; saturated colours may leave [0,1] by a sixth.
    """
    axis = torch.tensor([-1.0, 2.0, -1.0], device=x.device).div(6**0.5).view(1, 3, 1, 1)
    return x - rows.view(-1, 1, 1, 1) * axis * (x * axis).sum(1, keepdim=True)


def cut(images: Tensor, cells: Tensor, shifts: Tensor, side: int) -> Tensor:
    """Cut the tiles of cells B,K out of square images B,3,S,S: B*K,3,side,side.

    shifts: B,K,2, where each tile lies in its cell (down, right). Pixels left over by the grid are an outer margin.
    """
    size = images.shape[-1]
    cell = size // GRID
    margin = (size - GRID * cell) // 2
    corner = torch.stack([cells // GRID, cells % GRID], 2) * cell + margin + shifts  # B,K,2
    down, right = (corner[..., None] + torch.arange(side, device=images.device)).unbind(2)  # B,K,side
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    tiles = images[image, :, down[..., None], right[:, :, None]]  # B,K,side,side,3
    return tiles.permute(0, 1, 4, 2, 3).flatten(0, 1)
