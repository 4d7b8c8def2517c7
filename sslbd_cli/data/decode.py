"""Decode images to pixels on all cores. Foreign files are not trusted.

Any error of a decoder makes a corrupt image, which is reported by name. Sizes are checked before memory is allocated.
The workers are threads, because Pillow releases the interpreter lock while it decodes and resizes, and threads leave no
orphans.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.files import read_file
from sslbd_cli.artefacts.pictures import PictureRules, decode_picture, fault, strict_pillow
from sslbd_cli.artefacts.pictures import read_picture as read_bytes
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

if TYPE_CHECKING:
    from sslbd_cli.core.watch import Watch

CHUNK = 64  # images per task of a thread
NOTE_SECONDS = 10.0
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ImageFile:
    """Hold an encoded image: its name in the source, and a function that reads its bytes.

    `read` raises OSError if they cannot be read, which is no fault of the image, and anything else if it is damaged.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Decoded:
    """Hold decoded images uint8 M,3,H,W, their rows among the files, int64 M, and (name, reason) of those left out.

    digests: the hexadecimal SHA-256 of each file's bytes; empty if there are none. dim: names of images of 16 bits
    that became nearly black.
    """

    images: np.ndarray
    kept_rows: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    digests: tuple[str, ...]
    dim: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Hold the pixels of one file, uint8 H,W,3, or the problem that left none, and the SHA-256 of its bytes."""

    image: np.ndarray | None
    problem: str
    digest: str
    is_dim: bool = False


def decode(
    files: Sequence[ImageFile], size: int | None, skip: bool, watch: Watch, rules: PictureRules | None = None
) -> Decoded:
    """Decode files to RGB, in order. With `size`, fit each to a square; without, all must have one size.

    Raises InputError, which names the file, for a file that cannot be read, a corrupt image (unless `skip`), too many
    pixels and different sizes.
    """
    parts = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]
    stack = _Stack(len(files))
    digests, dim = list[str](), list[str]()
    skipped: list[tuple[str, str]] = []
    one = partial(_decode_one, size=size, rules=rules or PictureRules())
    work = _parallel(lambda part: [one(file) for file in part], parts)
    with strict_pillow(), contextlib.closing(work), watch(len(files), "images", "decoding") as ticker:
        noted = time.monotonic()
        for part, outcomes in zip(parts, work, strict=True):
            for file, outcome in zip(part, outcomes, strict=True):
                if outcome.image is not None:
                    stack.put(len(digests), file.name, outcome.image)
                elif skip:
                    skipped.append((file.name, outcome.problem))
                else:
                    why = f"corrupt image: {outcome.problem}; --skip-corrupt leaves such images out"
                    raise InputError(f"{file.name}: {why}")
                digests.append(outcome.digest)
                dim += [file.name] * outcome.is_dim
            ticker.advance(len(part))
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                ticker.note("decoding")
    return Decoded(stack.images(), np.array(stack.rows, np.int64), tuple(skipped), tuple(digests), tuple(dim))


class _Stack:
    """Stack images of one size as they arrive: uint8 M,3,H,W."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: list[int] = []
        self.first = ""
        self.room = np.empty((0, 3, 0, 0), np.uint8)

    def put(self, row: int, name: str, image: np.ndarray) -> None:
        """Add an image H,W,3. Raises InputError if its size differs from the first image's."""
        height, width, _ = image.shape
        if not self.rows:
            self.first = name
            self.room = allocate((self.most, 3, height, width))
        if self.room.shape[2:] != (height, width):
            of_first = f"{self.room.shape[3]}x{self.room.shape[2]}"
            raise InputError(f"{name}: {width}x{height} pixels, but {self.first} has {of_first}; give --size")
        self.room[len(self.rows)] = image.transpose(2, 0, 1)
        paging.note_use(image.nbytes)
        self.rows.append(row)

    def images(self) -> np.ndarray:
        return self.room[: len(self.rows)]


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate uint8 pixels. Raises InputError if memory is short."""
    try:
        return paging.empty(shape)
    except (MemoryError, ValueError):
        raise InputError(f"pixels of shape {shape} do not fit in memory; give a smaller --size or --limit") from None


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Fit images uint8 N,3,H,W to squares: uint8 N,3,size,size."""
    if images.shape[2:] == (size, size):
        return images
    room = allocate((len(images), 3, size, size))

    def work(start: int) -> None:
        for row in range(start, min(start + CHUNK, len(images))):
            square = fit(Image.fromarray(np.ascontiguousarray(images[row].transpose(1, 2, 0))), size)
            room[row] = np.asarray(square).transpose(2, 0, 1)
            paging.note_use(room[row].nbytes)

    with contextlib.closing(_parallel(work, range(0, len(images), CHUNK))) as done:
        for _ in done:
            pass
    return room


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` by antialiased bilinear interpolation and keep the centre square.

    The square is cut in the same pass, so a very long image costs no more than a square one.
    """
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def read_picture(path: str, size: int) -> np.ndarray:
    """Read one picture as a square, uint8 3,size,size. Raises InputError, which names it, if it cannot be decoded."""
    try:
        square = fit(read_bytes(read_file(path)).colours, size)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable picture: {reason(error)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _decode_one(file: ImageFile, size: int | None, rules: PictureRules) -> Outcome:
    """Decode one file. Raises InputError, which names it, if it cannot be read or has too many pixels."""
    digest = ""
    try:
        try:
            data = file.read()
        except OSError as error:
            raise InputError(
                f"cannot be read: {reason(error)}; --skip-corrupt leaves out corrupt images alone"
            ) from None
        digest = hashlib.sha256(data).hexdigest()
        picture = decode_picture(data, size, rules)
        colours = picture.colours if size is None else fit(picture.colours, size)
        return Outcome(np.asarray(colours), "", digest, picture.is_dim)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from None
    except Exception as error:  # decoders raise nearly any exception on malicious bytes
        return Outcome(None, fault(error), digest)


def unpacking_limit(packed: int) -> int:
    """Return the number of bytes that an archive of `packed` bytes may unpack to. More is taken for a bomb."""
    return max(1 << 30, 100 * packed)


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn any exception of a parser on a foreign file into an InputError that says what the file is not."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(reason(error) if error.strerror else f"damaged or not {what}: {reason(error)}") from None
    except Exception:  # do not repeat a parser's own advice (numpy advises to allow pickles)
        raise InputError(f"damaged or not {what}") from None


def _parallel(work: Callable[[In], Out], items: Sequence[In]) -> Generator[Out, None, None]:
    """Map over items in order on all cores. If the caller stops early, items that have not begun are dropped."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
