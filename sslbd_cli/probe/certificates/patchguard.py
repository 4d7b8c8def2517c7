"""PatchGuard (Xiang et al., USENIX Security 2021): robust masking of local votes, and its certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import generator, seed_torch, send
from sslbd_cli.core.loader import at_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.probe.certify import Certificate, Certified, Task
from sslbd_cli.probe.locality import Field, LocalFeatures, receptive_field

# --- Robust masking and its certificate (PatchGuard, Xiang et al., USENIX Security 2021), for batches of images


@dataclass(frozen=True)
class Windows:
    """All windows of rows x cols locations in maps of X,Y, numbered row by row."""

    shape: tuple[int, int]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self._corners()[0])

    def _corners(self) -> tuple[Tensor, Tensor]:
        (x, y), (rows, cols) = self.shape, self.size
        top, left = torch.meshgrid(torch.arange(x - rows + 1), torch.arange(y - cols + 1), indexing="ij")
        return top.flatten(), left.flatten()

    def sums(self, table: Tensor) -> Tensor:
        """Return the sum in each window, N,W,..., from a summed-area table N,X+1,Y+1,...."""
        rows, cols = self.size
        whole = table[:, rows:] - table[:, :-rows]
        return (whole[:, :, cols:] - whole[:, :, :-cols]).flatten(1, 2)

    def shared(self, table: Tensor) -> Tensor:
        """Return the sum in the intersection of each pair of windows, N,W,W, from a summed-area table N,X+1,Y+1."""
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
        """Return which pairs of windows have a common location, bool W,W."""
        near = [(a[:, None] - a).abs() < extent for a, extent in zip(self._corners(), self.size, strict=True)]
        return near[0] & near[1]


def summed_area(votes: Tensor) -> Tensor:
    """Return the summed-area table of maps N,X,Y,...: N,X+1,Y+1,..., beginning with zeros."""
    table = votes.new_zeros(votes.shape[0], votes.shape[1] + 1, votes.shape[2] + 1, *votes.shape[3:])
    table[:, 1:, 1:] = votes.cumsum(1).cumsum(2)
    return table


def robust_masking(votes: Tensor, windows: Windows, threshold: float = 0.0) -> Tensor:
    """Return each class's evidence N,C, without its most voted window if that holds more than a share of it."""
    total = votes.sum((1, 2))
    most = windows.sums(summed_area(votes)).amax(1)
    return torch.where(most > threshold * total, total - most, total)


def certify(votes: Tensor, labels: Tensor, windows: Windows, threshold: float = 0.0) -> Tensor:
    """Return which images keep their class under robust masking, whatever a window's votes become: bool N.

    For each window, compare two bounds. A wrong class can reach at most its votes outside the window, over
    1 - threshold: more votes in the window are masked unless they stay below the threshold's share. The true class
    keeps at least its votes outside the window, minus those of the window that is masked then. If no window holds more
    than the threshold's share of the rest, only windows that meet the attacked one can rise above it (the authors' fix
    of 12/2021).
    """
    step = at_once("window numbers", votes.device.type, len(windows) ** 2)
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


SAMPLE = 128  # labelled images whose features set the head's scale


@dataclass(frozen=True, kw_only=True)
class PatchGuard(Certificate):
    """Certify answers against a square patch anywhere in the image (Xiang et al., USENIX Security 2021).

    A linear head votes at every location of an encoder whose locations see few pixels. Votes below 0 count as 0, and
    the most voted window of each class is masked. Features are not pooled or scaled to unit length before. A backdoor
    does not make the certificate wrong, but it lowers the share of certified images. `asr` is the head's without
    masking, `asr_defended` with masking.
    """

    size: int = key(10, "side of the patch in pixels", low=1)
    threshold: float = key(0.0, "share of a class's votes above which a window is masked", low=0, high=0.99)
    training: str = key("provable", "training of the head; provable masks the true class's most voted window",
                        choices=("provable", "plain"))  # fmt: skip
    epochs: int = key(20, "passes over the labelled images", low=1)
    batch: int = key(64, "images per step", low=2, expert=True)
    lr: float = key(0.005, "learning rate (Adam, cosine)", low=0)

    def certify(self, encoder: ImageEncoder, task: Task, session: Session) -> Certified:
        field = receptive_field(encoder)
        windows = self.windows(field, encoder)
        encoder = encoder.to(session.device.torch).eval()
        head = self._fit(LocalFeatures(encoder, task.train, session), task, windows, session)
        plain, defended, is_certified = self._answer(encoder, head, task.test, windows, session, task.truth)
        certified = Certified(plain, defended, is_certified & (plain == task.truth), details={
            "receptive_field": list(field.extent), "locations": list(windows.shape), "window": list(windows.size),
        })  # fmt: skip
        if task.triggered is None:
            return certified
        stamped = self._answer(encoder, head, task.triggered, windows, session)
        return Certified(plain, defended, certified.certified, stamped[0], stamped[1], certified.details)

    def windows(self, field: Field, encoder: ImageEncoder) -> Windows:
        """Return the windows that a patch may touch. Raises InputError if a patch can touch all locations."""
        shape = (field.rows.shape[1], field.cols.shape[1])
        sees, maps = "{1}x{0}".format(*field.extent), "{1}x{0}".format(*shape)
        about = f"each of the {maps} locations of {encoder.arch} sees {sees} of {encoder.size}x{encoder.size} pixels"
        if self.size > encoder.size:
            raise InputError(
                f"patchguard: size={self.size} is larger than the images of {encoder.size} pixels; lower size"
            )
        touched = field.touched(self.size)
        if touched[0] >= shape[0] and touched[1] >= shape[1]:
            patch = f"a patch of {self.size}x{self.size} can change all of them and nothing can be certified"
            raise InputError(f"{about}: {patch}; use an encoder that sees less (--arch tinybag or bagnet)")
        return Windows(shape, touched)

    def _fit(self, local: LocalFeatures, task: Task, windows: Windows, session: Session) -> LocalHead:
        sample = local.batch(torch.arange(min(SAMPLE, len(task.labels))))
        head = LocalHead(sample, task.classes, session.seed)
        labels = task.labels.to(session.device.torch)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            votes = head.votes(local.batch(rows))
            evidence = votes.sum((1, 2))
            truth = labels[send(rows, labels.device)]
            if self.training == "provable":
                own = votes.gather(3, truth.view(-1, 1, 1, 1).expand(-1, *votes.shape[1:3], 1)).movedim(3, 1)
                most = F.avg_pool2d(own, windows.size, 1).flatten(1).amax(1) * (windows.size[0] * windows.size[1])
                evidence = evidence - F.one_hot(truth, task.classes) * most[:, None]
            return {"loss": F.cross_entropy(evidence / (votes.shape[1] * votes.shape[2]), truth)}

        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(labels)), lr=self.lr, optimiser="adam")
        Fit(head, loss, len(labels), plan, session.exact()).run(self.name)
        return head.eval()

    @torch.inference_mode()
    def _answer(
        self, encoder: ImageEncoder, head: LocalHead, images: np.ndarray, windows: Windows, session: Session,
        truth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the answers without and with masking, and (with `truth`) which images are certified."""
        parts = []
        local = LocalFeatures(encoder, images, session, again=False)
        for rows in torch.split(
            torch.arange(len(images)), at_once("local numbers", session.device.kind, local.numbers)
        ):
            votes = head.votes(local.batch(rows)).double()
            is_certified = torch.zeros(len(rows), dtype=torch.bool)
            if truth is not None:
                is_certified = certify(votes, truth[rows].to(votes.device), windows, self.threshold).cpu()
            answers = (votes.sum((1, 2)), robust_masking(votes, windows, self.threshold))
            parts.append((*(evidence.argmax(1).cpu() for evidence in answers), is_certified))
        plain, defended, is_certified = (torch.cat(column) for column in zip(*parts, strict=True))
        return plain, defended, is_certified


class LocalHead(nn.Module):
    """A linear layer at every location, on features standardised by those of the sample B,D,X,Y."""

    mean: Tensor
    scale: Tensor

    def __init__(self, sample: Tensor, classes: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", sample.mean((0, 2, 3)))
        self.register_buffer("scale", (sample.var((0, 2, 3)) + 1e-5).rsqrt())
        with torch.random.fork_rng(devices=[]):
            seed_torch(generator(seed, "local head"))
            self.linear = nn.Linear(sample.shape[1], classes).to(sample.device)

    def votes(self, maps: Tensor) -> Tensor:
        """Turn features B,D,X,Y into votes B,X,Y,C of at least 0."""
        votes: Tensor = F.relu(self.linear((maps.permute(0, 2, 3, 1) - self.mean) * self.scale))
        return votes
