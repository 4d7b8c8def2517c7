"""Decode images to pixels on all cores. Foreign files are not trusted.

Any error of a decoder makes a corrupt image, which is reported by name. Sizes are checked before memory is allocated.
The workers are threads, because Pillow releases the interpreter lock while it decodes and resizes, and threads leave no
orphans.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from sslbd_cli.artefacts import paging
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

if TYPE_CHECKING:
    from sslbd_cli.core.watch import Watch

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CHUNK = 64  # images per task of a thread
FILE_LIMIT = 256 << 20  # bytes of one encoded image
NOTE_SECONDS = 10.0
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ImageFile:
    """Hold an encoded image: its name in the source, and a function that reads its bytes (may raise OSError)."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Decoded:
    """Hold decoded images uint8 M,3,H,W, their rows among the files, int64 M, and (name, reason) of those left out.

    digests: the hexadecimal SHA-256 of each file's bytes; empty if they could not be read.
    """

    images: np.ndarray
    kept_rows: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    digests: tuple[str, ...]


def decode(files: Sequence[ImageFile], size: int | None, skip: bool, watch: Watch) -> Decoded:
    """Decode files to RGB, in order. With `size`, fit each to a square; without, all must have one size.

    Raises InputError, which names the file, for a corrupt image (unless `skip`) and for different sizes.
    """
    parts = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]
    stack = _Stack(len(files))
    digests: list[str] = []
    skipped: list[tuple[str, str]] = []
    work = _parallel(lambda part: [_decode_one(file, size) for file in part], parts)
    with _strict_pillow(), contextlib.closing(work), watch(len(files), "images", "decoding") as ticker:
        noted = time.monotonic()
        for part, results in zip(parts, work, strict=True):
            for file, (image, digest) in zip(part, results, strict=True):
                if isinstance(image, np.ndarray):
                    stack.put(len(digests), file.name, image)
                elif skip:
                    skipped.append((file.name, image))
                else:
                    raise InputError(f"{file.name}: corrupt image: {image}; --skip-corrupt leaves such images out")
                digests.append(digest)
            ticker.advance(len(part))
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                ticker.note("decoding")
    return Decoded(stack.images(), np.array(stack.rows, np.int64), tuple(skipped), tuple(digests))


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


def pixels(data: bytes, size: int | None = None) -> np.ndarray:
    """Decode one image to RGB, uint8 H,W,3. Raises whatever Pillow raises on bytes that it cannot read."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        colours = _to_rgb(image)
    return np.asarray(colours if size is None else fit(colours, size))


def read_picture(path: str, size: int) -> np.ndarray:
    """Read one picture as a square, uint8 3,size,size. Raises InputError, which names it, if it cannot be decoded."""
    with _strict_pillow():
        image, _ = _decode_one(ImageFile(path, lambda: read_file(path)), size)
    if isinstance(image, str):
        raise InputError(f"{path}: not a readable picture: {image}")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Drop alpha, expand grey and palettes. Of 16-bit samples, keep the high byte, as Pillow does for 16-bit RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating point pixels have no defined range")
    return image.convert("RGB")


def _decode_one(file: ImageFile, size: int | None) -> tuple[np.ndarray | str, str]:
    """Return the pixels H,W,3, or the reason why there are none, and the SHA-256 of the bytes."""
    digest = ""
    try:
        data = file.read()
        digest = hashlib.sha256(data).hexdigest()
        return pixels(data, size), digest
    except UnidentifiedImageError:
        return "not an image of a known format", digest
    except Exception as error:  # decoders raise nearly any exception on malicious bytes
        return reason(error), digest


def read_file(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read a regular file, or `size` bytes of it. Raises OSError for anything else, because a pipe may never end."""
    if not Path(path).is_file():
        raise OSError("not a regular file" if Path(path).exists() else "no such file")
    size = Path(path).stat().st_size - offset if size is None else size
    refuse_large(size)
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise EOFError("truncated")
    return data


def refuse_large(size: int) -> bytes:
    """Raise OSError if an encoded image claims more than FILE_LIMIT bytes."""
    if size > FILE_LIMIT:
        raise OSError(f"claims {size} bytes, more than the {FILE_LIMIT} an image file may have")
    return b""


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


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Turn Pillow's warning of a decompression bomb into an error, and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _parallel(work: Callable[[In], Out], items: Sequence[In]) -> Generator[Out, None, None]:
    """Map over items in order on all cores. If the caller stops early, items that have not begun are dropped."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
