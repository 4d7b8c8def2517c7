"""Kin of a trigger: harmless changes of the same strength that carry another pattern.

Any patch, blend or wave moves embeddings somewhat, of any encoder. A backdoor answers to its own trigger. So a trigger
speaks for a backdoor only if it does what its kin do not. Kin are made from what a trigger does to pixels, so every
trigger has them, those of other packages too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.triggers._contract import Trigger

LEVEL = 1.5 / 255  # what is read of a trigger may miss the pixels that it stamps by so much, on average
WEAKEST, STRONGEST = 0.98, 1.25  # strength of kin relative to the trigger: root mean square of the pixels' change
LIKE = 0.6  # a pattern is another one if no shift brings its correlation with the trigger's above this
DRAWS = 8  # draws for one kin, until it is another pattern of the same strength
PLACES, OVERLAP = 16, 0.25  # places drawn for a change, of which the first that covers less of the trigger's is taken
GROWTH, MOST_GROWTH = 1.05, 1.5  # sides of kin are stretched by so much at once, and in all, to reach the strength
MISSES = 3  # fruitless kin of a kind in a row, after which the kind is left out
COMPARED = 4  # images on which patterns that differ by image are compared


@dataclass(frozen=True)
class Suspect:
    """A trigger, and images with it. clean, stamped: uint8 N,3,H,W, the same images; boxes: int64 N,4, its places."""

    trigger: Trigger
    clean: np.ndarray
    stamped: np.ndarray
    boxes: np.ndarray

    def take(self, rows: np.ndarray) -> Suspect:
        """Return the suspect on some of its images."""
        return replace(self, clean=self.clean[rows], stamped=self.stamped[rows], boxes=self.boxes[rows])


@dataclass(frozen=True)
class Kin:
    """A harmless change. kind: how its pattern was made; images: uint8 N,3,H,W with it.

    strength: its root mean square change of the pixels, relative to the trigger's.
    """

    kind: str
    images: np.ndarray
    strength: float


@dataclass(frozen=True)
class HarmlessChange:
    """Pixels x in a box become keep * x + add. keep: float32 3,h,w; add: 3,h,w, or N,3,h,w if each image has its own.

    corners: int64 N,2, left and top of each image's box.
    """

    keep: Tensor
    add: Tensor
    corners: Tensor

    def apply(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """Return images N,3,H,W in [0,1] with the change, which `factor` makes stronger."""
        out = x.clone()
        height, width = self.add.shape[-2:]
        for row, (left, top) in enumerate(self.corners.tolist()):
            part = out[row, :, top : top + height, left : left + width]
            add = self.add[row] if self.add.ndim == 4 else self.add
            part += factor * (self.keep * part + add - part)
        return out.clamp_(0, 1)

    def stretched(self, sides: list[int], shape: torch.Size) -> HarmlessChange:
        """Return the change on boxes of other sides (height, width), inside images N,3,H,W, around the same centres."""
        keep = F.interpolate(self.keep[None], sides)[0]
        add = F.interpolate(self.add if self.add.ndim == 4 else self.add[None], sides)
        more = torch.tensor([sides[1] - self.add.shape[-1], sides[0] - self.add.shape[-2]])
        room = torch.tensor([shape[3] - sides[1], shape[2] - sides[0]])
        corners = (self.corners - more // 2).clamp(min=0).minimum(room)
        return HarmlessChange(keep, add if self.add.ndim == 4 else add[0], corners)

    def pattern(self) -> Tensor:
        """Return what the change does to grey pixels, float32 K,3,h,w."""
        pattern = self.add - (1 - self.keep) / 2
        return pattern[None] if pattern.ndim == 3 else pattern[:COMPARED]


def kin_of(suspect: Suspect, seed: int) -> Iterator[Kin]:
    """Yield kin of a trigger without end, the kinds in turn; none at all if nothing that strong can be drawn.

    A kind that a trigger does not have is left out: a white patch, say, cannot be shuffled.
    """
    clean = torch.from_numpy(suspect.clean)
    known = _read(suspect.trigger, clean, torch.from_numpy(suspect.stamped), torch.from_numpy(suspect.boxes))
    misses = dict.fromkeys(KINDS, 0)  # by kind, in a row
    for number in range(1_000_000):
        if not misses:
            return
        for kind in tuple(misses):
            kin = _draw(kind, suspect, known, generator(seed, "kin", str(suspect.trigger), kind, number))
            if kin is not None:
                misses[kind] = 0
                yield kin
            elif misses[kind] == MISSES:
                del misses[kind]
            else:
                misses[kind] += 1


def _draw(kind: str, suspect: Suspect, known: HarmlessChange, gen: torch.Generator) -> Kin | None:
    """Draw until the pattern is another one of the trigger's strength; return None after some draws."""
    clean = torch.from_numpy(suspect.clean)
    strength = _strength(torch.from_numpy(suspect.stamped), clean)
    for _ in range(DRAWS):
        change = KINDS[kind](known, suspect, gen)
        if change is None or likeness(change.pattern(), known.pattern()) > LIKE:
            continue
        images, share = _at_strength(_moved(change, clean.shape, gen), clean, strength)
        if WEAKEST <= share <= STRONGEST:
            return Kin(kind, images.numpy(), share)
    return None


def _at_strength(change: HarmlessChange, clean: Tensor, strength: float) -> tuple[Tensor, float]:
    """Return images with a change as strong as asked, uint8, and their strength relative to that.

    Colours end at black and white: a white patch on a dark ground is as strong as any patch of its size can be. So a
    change that is too weak in the brightest colours is made larger. Weaker kin would make every bright trigger stand
    out.
    """
    images, share = _as_strong(change, clean, strength)
    sides, grown = change.add.shape[-2:], 1.0
    while share < WEAKEST and grown * GROWTH <= MOST_GROWTH and max(sides) < min(clean.shape[-2:]) / 2:
        grown *= GROWTH
        larger = change.stretched([math.ceil(side * grown) for side in sides], clean.shape)
        images, share = _as_strong(larger, clean, strength)
    return images, share


def _as_strong(change: HarmlessChange, clean: Tensor, strength: float) -> tuple[Tensor, float]:
    """Return images with a change as strong as asked, uint8, and their strength relative to that."""
    factor, share = 1.0, 0.0
    images = clean
    for _ in range(4):  # pixels are clipped, so the strength does not follow the factor exactly
        images = change.apply(clean / 255, factor).mul(255).round().to(torch.uint8)
        share = _strength(images, clean) / max(strength, 1e-9)
        if abs(share - 1) < 0.02 or share == 0:
            break
        factor /= share
    return images, share


def _strength(images: Tensor, clean: Tensor) -> float:
    return float((images.float() - clean.float()).square().mean().sqrt())


def likeness(pattern: Tensor, other: Tensor) -> float:
    """Return the largest correlation of two patterns K,3,h,w under any cyclic shift, the mean over K."""
    if pattern.shape[-2:] != other.shape[-2:]:
        return 0.0
    spectra = torch.fft.rfft2(pattern) * torch.fft.rfft2(other).conj()
    peaks = torch.fft.irfft2(spectra.sum(1), s=pattern.shape[-2:]).amax((-2, -1))
    sizes = pattern.flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1)
    return float((peaks / sizes.clamp(min=1e-9)).mean())


# --- what a trigger does to pixels --------------------------------------------------------------------------------


def _read(trigger: Trigger, clean: Tensor, stamped: Tensor, boxes: Tensor) -> HarmlessChange:
    """Return what a trigger does, read off two grey images; a change of its own for each image if that does not hold.

    clean, stamped: uint8 N,3,H,W; boxes: int64 N,4.
    """
    low, high = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, *clean.shape[1:])
    greys = trigger(torch.stack([low, high]), generator(0, "kin read"), "test", boxes[:1].repeat(2, 1)).images
    keep = ((greys[1] - greys[0]) * 2).clamp(0, 1)
    keep = torch.where((1 - keep).abs() < 1e-4, torch.ones(()), keep)
    add = greys[0] - keep / 4
    touched = ((1 - keep).abs() + add.abs()).amax(0) > 1e-4
    if touched.any():
        rows, columns = _bounds(touched)
        corners = boxes[:, :2] - boxes[:1, :2] + torch.tensor([columns.start, rows.start])
        change = HarmlessChange(keep[:, rows, columns].contiguous(), add[:, rows, columns].contiguous(), corners)
        if float((change.apply(clean / 255) - stamped / 255).abs().mean()) < LEVEL:
            return change
    residuals = (stamped.float() - clean.float()) / 255
    return HarmlessChange(torch.ones(clean.shape[1:]), residuals, torch.zeros(len(clean), 2, dtype=torch.int64))


def _bounds(touched: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns that hold all marked pixels of bool H,W."""
    rows, columns = (touched.any(axis).nonzero().flatten() for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# --- other patterns -----------------------------------------------------------------------------------------------


def _choose(gen: torch.Generator, *values: int) -> int:
    return values[int(torch.randint(len(values), (1,), generator=gen))]


def _moved(change: HarmlessChange, shape: torch.Size, gen: torch.Generator) -> HarmlessChange:
    """Put a change that has one place at another, the same in all images.

    A backdoor may answer to whatever lies at the trigger's own place, so what lies there is not known to be harmless.
    The place is the trigger's own as seen in a mirror: a patch in a corner has other grounds than one in the middle of
    photographs, and networks pad their borders. Only where the mirrored places overlap is any place drawn.
    """
    room = torch.tensor([shape[3] - change.add.shape[-1], shape[2] - change.add.shape[-2]])
    home = change.corners[:1]
    if not (change.corners == home).all() or not room.any():
        return change
    flips = torch.tensor([[1, 0], [0, 1], [1, 1]])
    mirrored = torch.where(flips.bool(), room - home, home)[torch.randperm(3, generator=gen)]
    places = torch.cat([mirrored, (torch.rand(PLACES, 2, generator=gen) * (room + 1)).long()])
    apart = (places - home).abs() / torch.tensor([change.add.shape[-1], change.add.shape[-2]])
    overlaps = (1 - apart).clamp(min=0).prod(1)
    first = int((overlaps < OVERLAP).int().argmax()) if (overlaps < OVERLAP).any() else int(overlaps.argmin())
    return replace(change, corners=places[first].repeat(len(change.corners), 1))


def _reseeded(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange | None:
    """Draw the trigger from another seed, if it has one."""
    if not isinstance(getattr(suspect.trigger, "seed", None), int):
        return None
    clean, boxes = torch.from_numpy(suspect.clean), torch.from_numpy(suspect.boxes)
    number = int(torch.randint(1, 1 << 30, (1,), generator=gen))
    try:
        other: Trigger = replace(suspect.trigger, seed=number)  # type: ignore[call-arg]
        stamped = other(clean, generator(number, "kin"), "test")
    except InputError:  # another size, which does not fit
        return None
    return _read(other, clean, stamped.images, stamped.boxes if other.has_place else boxes)


def _redrawn(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange:
    """Draw cells of random saturated colours, of any size."""
    height, width = known.add.shape[-2:]
    cells = min(_choose(gen, 1, 2, 4, 8, max(height, width)), height, width)
    colours = torch.randint(0, 2, (3, cells, cells), generator=gen).float()
    rows, columns = torch.arange(height) * cells // height, torch.arange(width) * cells // width
    cell_colours = colours[:, rows][:, :, columns]
    added = known.add.square().mean((-3, -2, -1), keepdim=True).sqrt() * (2 * cell_colours - 1)
    return replace(known, add=torch.where(known.keep < 1, (1 - known.keep) * cell_colours, added))


def _recoloured(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange:
    """Permute the channels, and invert some."""
    order, invert = torch.randperm(3, generator=gen), torch.randint(0, 2, (3, 1, 1), generator=gen).bool()
    keep, add = known.keep[order], known.add[..., order, :, :]
    return replace(known, keep=keep, add=torch.where(invert, (1 - keep) - add, add))


def _shuffled(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange:
    """Permute square cells of pixels, or single pixels."""
    height, width = known.add.shape[-2:]
    side = max(1, min(height, width) // _choose(gen, 4, 8, height))
    rows, columns = height // side, width // side
    order = torch.randperm(rows * columns, generator=gen)

    def shuffle(part: Tensor) -> Tensor:
        part = part.clone()
        whole = part[..., : rows * side, : columns * side]
        grid = *whole.shape[:-2], rows, side, columns, side
        cells = whole.reshape(grid).transpose(-3, -2)  # ..., rows, columns, side, side
        mixed = cells.flatten(-4, -3)[..., order, :, :].reshape(cells.shape)
        whole.copy_(mixed.transpose(-3, -2).reshape(whole.shape))
        return part

    return replace(known, keep=shuffle(known.keep), add=shuffle(known.add))


def _scrambled(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange | None:
    """Draw noise with the pattern's energy at each scale, and its mean colour: the phases and directions are random."""
    if float(known.keep.amax((1, 2)).sub(known.keep.amin((1, 2))).max()) > 0.01:  # a mask of its own shape
        return None
    height, width = known.add.shape[-2:]
    spectrum = torch.fft.rfft2(known.add).abs().square()
    y, x = torch.fft.fftfreq(height)[:, None] * height, torch.fft.rfftfreq(width) * width
    ring = (y.square() + x.square()).sqrt().round().long().flatten()
    counts = torch.bincount(ring).float()
    energy = torch.zeros(*spectrum.shape[:-2], len(counts)).index_add_(-1, ring, spectrum.flatten(-2)) / counts
    noise = torch.fft.rfft2(torch.randn(_choose(gen, 1, 3), height, width, generator=gen) / (height * width) ** 0.5)
    drawn = torch.fft.irfft2(noise * energy.sqrt()[..., ring].reshape(spectrum.shape), s=(height, width))
    mean = known.add.mean((-2, -1), keepdim=True)
    add = drawn - drawn.mean((-2, -1), keepdim=True) + mean
    return replace(known, add=torch.where(known.keep < 1, add.clamp(min=0).minimum(1 - known.keep), add))


def _rotated(known: HarmlessChange, suspect: Suspect, gen: torch.Generator) -> HarmlessChange:
    """Turn the pattern, and mirror it or not."""
    is_square = known.add.shape[-1] == known.add.shape[-2]
    turns, mirror = _choose(gen, *((0, 1, 2, 3) if is_square else (0, 2))), _choose(gen, 0, 1)

    def turn(part: Tensor) -> Tensor:
        part = torch.rot90(part, turns, (-2, -1))
        return part.flip(-1) if mirror else part

    return replace(known, keep=turn(known.keep), add=turn(known.add))


KINDS: dict[str, Callable[[HarmlessChange, Suspect, torch.Generator], HarmlessChange | None]] = {
    "redrawn": _redrawn,
    "recoloured": _recoloured,
    "shuffled": _shuffled,
    "reseeded": _reseeded,
    "scrambled": _scrambled,
    "rotated": _rotated,
}
