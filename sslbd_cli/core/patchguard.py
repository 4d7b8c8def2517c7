"""Robust masking and its certificate (PatchGuard, Xiang et al., USENIX Security 2021), for batches of images.

Every location of a network of small receptive fields votes for classes by what it sees; a patch changes the votes of
one w x w window of locations at most. The defence takes the most voted window of each class out; the certificate
bounds what any patch can do to the rest. Votes are local logits clipped below at 0: N,X,Y,C, float64, where sums of
window corners stay exact enough. Ties go to the lower class, in the prediction and in the certificate alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 24  # numbers of one N,W,W matrix held at once: 128 MB


@dataclass(frozen=True)
class Windows:
    """All windows of rows x cols locations in maps of X,Y, numbered along the rows."""

    shape: tuple[int, int]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self._corners()[0])

    def _corners(self) -> tuple[Tensor, Tensor]:
        (x, y), (rows, cols) = self.shape, self.size
        top, left = torch.meshgrid(torch.arange(x - rows + 1), torch.arange(y - cols + 1), indexing="ij")
        return top.flatten(), left.flatten()

    def sums(self, table: Tensor) -> Tensor:
        """Return the sum in every window, N,W,..., from a summed-area table N,X+1,Y+1,...."""
        rows, cols = self.size
        whole = table[:, rows:] - table[:, :-rows]
        return (whole[:, :, cols:] - whole[:, :, :-cols]).flatten(1, 2)

    def shared(self, table: Tensor) -> Tensor:
        """Return what every two windows have in common, N,W,W, from a summed-area table N,X+1,Y+1."""
        spans = []
        for start, extent in zip(self._corners(), self.size, strict=True):
            low = torch.maximum(start[:, None], start)
            spans.append((low, torch.maximum(low, torch.minimum(start[:, None], start) + extent)))
        (top, bottom), (left, right) = spans
        flat, wide = table.flatten(1), self.shape[1] + 1
        total = flat.new_zeros(())
        for sign, row, col in ((1, bottom, right), (-1, top, right), (-1, bottom, left), (1, top, left)):
            total = total + sign * flat[:, (row * wide + col).to(flat.device)]
        return total

    def meet(self) -> Tensor:
        """Tell which windows have a location in common, bool W,W."""
        near = [(a[:, None] - a).abs() < extent for a, extent in zip(self._corners(), self.size, strict=True)]
        return near[0] & near[1]


def summed_area(votes: Tensor) -> Tensor:
    """Return the summed-area table of maps N,X,Y,...: N,X+1,Y+1,..., zeros first."""
    table = votes.new_zeros(votes.shape[0], votes.shape[1] + 1, votes.shape[2] + 1, *votes.shape[3:])
    table[:, 1:, 1:] = votes.cumsum(1).cumsum(2)
    return table


def robust_masking(votes: Tensor, windows: Windows, threshold: float = 0.0) -> Tensor:
    """Return each class's evidence without its most voted window, N,C, where that holds more than a share of it."""
    total = votes.sum((1, 2))
    most = windows.sums(summed_area(votes)).amax(1)
    return torch.where(most > threshold * total, total - most, total)


def certify(votes: Tensor, labels: Tensor, windows: Windows, threshold: float = 0.0) -> Tensor:
    """Tell which images keep their class under robust masking whatever a window's votes become: bool N.

    For each window, an upper bound of any wrong class is what is left outside it, over 1 - threshold: more votes in it
    are masked, unless they stay below the threshold's share. A lower bound of the true class: all votes in the window
    are lost, and so are those of the window that is masked then; where no window holds more than the threshold's share
    of the rest, only windows that meet the attacked one can be brought above it (the authors' fix of 12/2021).
    """
    step = max(1, BLOCK // len(windows) ** 2)
    pairs = zip(torch.split(votes, step), torch.split(labels, step), strict=True)
    return torch.cat([_certify(part, true, windows, threshold) for part, true in pairs])


def _certify(votes: Tensor, labels: Tensor, windows: Windows, threshold: float) -> Tensor:
    rows = torch.arange(len(votes), device=votes.device)
    table = summed_area(votes)
    left = votes.sum((1, 2))[:, None] - windows.sums(table)  # N,W,C: evidence outside each window
    upper = left / (1 - threshold)
    own = table[rows, :, :, labels]
    inside = windows.sums(own)
    remaining = inside[:, None, :] - windows.shared(own)  # N,W,W': what W' holds with W lost
    outside = left[rows, :, labels]  # N,W
    largest = remaining.amax(2)
    if threshold > 0:
        touching = remaining.masked_fill(~windows.meet().to(votes.device), 0).amax(2)
        largest = torch.where(largest > threshold * outside, largest, touching)
    lower = (outside - largest)[:, :, None]
    wins = lower > upper
    wins |= (lower == upper) & (labels[:, None, None] < torch.arange(votes.shape[3], device=votes.device))
    wins[rows, :, labels] = True
    return wins.all(2).all(1)
