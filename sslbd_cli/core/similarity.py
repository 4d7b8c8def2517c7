"""Search by cosine similarity among N rows, in blocks, so that the N x N matrix is never stored.

Products are fp32 (not TF32 or bf16), because the scores of neighbouring anchors differ by little.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.loader import at_once
from sslbd_cli.errors import InputError

CHUNK = 64  # similarities of which only the largest is looked at first


@torch.no_grad()
def unit(feats: Tensor) -> Tensor:
    """Return rows of length 1, float32 N,D; zero rows stay zero."""
    return F.normalize(feats.float(), dim=1)


@torch.no_grad()
def mean_cosine(feats: Tensor, others: Tensor) -> float:
    """Return the mean cosine between two embeddings of the same images, N,D each; 1 if no direction changed."""
    return float((unit(feats) * unit(others)).sum(1).mean())


def pair_cosine(z: Tensor) -> Tensor:
    """Return the mean cosine between different rows of unit vectors ...,B,D; NaN for one row, which has no pairs.

    It is the mean of the B x B products without the diagonal. The sum of all products is the squared length of the
    summed rows.
    """
    count = z.shape[-2]
    return (z.sum(-2).square().sum(-1) - z.square().sum((-1, -2))) / (count * (count - 1))


@torch.no_grad()
def nearest_rows(z: Tensor, bank: Tensor, count: int, step: int, others: bool = False) -> tuple[Tensor, Tensor]:
    """Find the `count` rows of a bank N,D most similar to each row of z M,D: similarities, descending, and rows.

    step: rows of z to compare at once. others: whether z is the bank itself, so that no row is its own neighbour.
    """
    parts = []
    for start in range(0, max(len(z), 1), step):  # of no rows, an empty answer
        similar = z[start : start + step] @ bank.T
        if others:
            similar[:, start : start + len(similar)].fill_diagonal_(-2)
        parts.append(_largest(similar, count) if others else similar.topk(count, dim=1))
    similarities, rows = zip(*parts, strict=True)
    return torch.cat(similarities), torch.cat(rows)


def _largest(similar: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of each row B,N, descending, and their columns int64, both B,count.

    They lie in the `count` chunks with the largest maxima, so only these are sorted.
    """
    chunks = similar.shape[1] // CHUNK
    if chunks <= 2 * count:
        values, at = similar.topk(count, dim=1)
        return values, at
    whole = similar[:, : chunks * CHUNK].view(len(similar), chunks, CHUNK)
    best = whole.amax(2).topk(count, dim=1).indices
    sought = (best[:, :, None] * CHUNK + torch.arange(CHUNK, device=similar.device)).flatten(1)
    rest = torch.arange(chunks * CHUNK, similar.shape[1], device=similar.device).expand(len(similar), -1)
    sought = torch.cat([sought, rest], dim=1)
    values, at = similar.gather(1, sought).topk(count, dim=1)
    return values, sought.gather(1, at)


@torch.no_grad()
def linear_cka(feats: Tensor, others: Tensor) -> float:
    """Return linear CKA of the same images' features N,D and N,E (Kornblith et al. 2019, equation 5).

    It is |Y'X|^2 / (|X'X| |Y'Y|) with Frobenius norms of centred features: 1 for features that are equal up to rotation
    and scale, 0 if either is constant.
    """
    x, y = (part.double() - part.double().mean(0) for part in (feats.cpu(), others.cpu()))
    below = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).norm().square() / below) if below > 0 else 0.0


@torch.no_grad()
def anchor_scores(z: Tensor, near: int, top: float, after: float) -> Tensor:
    """Score each row of unit features z N,D as an anchor: float64 N on the CPU.

    Let s_1 >= s_2 >= ... be its similarities to all rows, including itself. The score is
    top * (s_1 + ... + s_near) + after * (s_(near+1) + ... + s_(2 near)); without the second sum if after is 0.
    Only the two sums are needed, so nothing is sorted. Raises InputError if there are too few rows.
    """
    times = 2 if after else 1
    reach = times * near
    if near < 1 or reach > len(z):
        what = f"{near} neighbours" + (" and as many to contrast them with" if after else "")
        raise InputError(f"{what} of {len(z)} rows: lower the rate or the count, to 1 ... {len(z) // times}")
    bands = _bands_cpu if z.device.type == "cpu" else _bands_device
    step = at_once("anchor similarities", z.device.type, len(z))
    out = z.new_empty(min(step, len(z)), len(z))
    scores = []
    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        for rows in torch.split(z, step):
            sums = bands(rows, z, out[: len(rows)], (near, reach), workers)
            scores.append(top * sums[0] + after * sums[1])
    return torch.cat(scores)


def _bands_cpu(
    rows: Tensor, z: Tensor, out: Tensor, bands: tuple[int, int], workers: ThreadPoolExecutor
) -> tuple[Tensor, Tensor]:
    """Sum a block's largest `near` similarities, and the following ones up to `reach`; each float64 B.

    numpy's partition selects in place with wide vector instructions, in less than half the time of torch.topk. Products
    are negated, so that the largest similarities come first. The second partition works on `reach` entries only.
    """
    near, reach = bands
    torch.matmul(-rows, z.T, out=out)

    def halves(part: np.ndarray) -> np.ndarray:
        part.partition(reach - 1, axis=1)
        first = part[:, :reach]
        if near < reach:
            first.partition(near - 1, axis=1)
        return -np.stack([first[:, :near].sum(1, dtype=np.float64), first[:, near:].sum(1, dtype=np.float64)])

    parts = np.array_split(out.numpy(), torch.get_num_threads())
    sums = torch.from_numpy(np.concatenate(list(workers.map(halves, parts)), axis=1))
    return sums[0], sums[1]


def _bands_device(
    rows: Tensor, z: Tensor, out: Tensor, bands: tuple[int, int], workers: ThreadPoolExecutor
) -> tuple[Tensor, Tensor]:
    near, reach = bands
    torch.matmul(rows, z.T, out=out)
    largest = out.topk(reach, dim=1, sorted=False).values
    first = largest if near == reach else largest.topk(near, dim=1, sorted=False).values
    top, both = (part.sum(1, dtype=torch.float64).cpu() for part in (first, largest))
    return top, both - top


@torch.no_grad()
def nearest(z: Tensor, anchor: int, count: int) -> Tensor:
    """Return the rows most similar to the anchor, int64 count on the CPU. A tie goes to the lower row."""
    similar = (z @ z[anchor]).cpu()
    return similar.sort(descending=True, stable=True).indices[:count]


@torch.no_grad()
def within_and_across(z: Tensor, rows: Tensor, total: Tensor) -> tuple[float, float]:
    """Return the sum of all similarities between the chosen rows, and the sum between them and the rest.

    Let s be the sum of the chosen rows and t the sum of all rows (`total`). The results are s.s (which includes each
    row with itself) and s.(t - s), so no single similarity is computed.
    """
    s, t = z[rows.to(z.device)].sum(0).double(), total.double()
    return float(s @ s), float(s @ (t - s))
