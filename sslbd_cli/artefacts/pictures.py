"""The one decoder of pictures: of datasets, of references and of triggers. Foreign bytes are not trusted.

All become 8-bit RGB. Of 16-bit samples the high byte counts, as Pillow does for 16-bit RGB. Pixels without a defined
range (floats, 32-bit integers) are refused. A picture is turned as its EXIF orientation says, as viewers do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MOST_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, Pillow's own limit
DIM = 16  # of 255: 16-bit samples all below this were probably stored with 12 bits or fewer
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Sixteen bits per sample open in mode I, too, from these formats.
WIDE_FORMATS = ("PNG", "PPM")
_large = threading.Lock()


@dataclass(frozen=True)
class PictureRules:
    """How to read pictures: the most pixels to decode; whether EXIF turns them, and whether alpha is looked at."""

    most_pixels: int = MOST_PIXELS
    turns: bool = True
    with_alpha: bool = False


@dataclass(frozen=True)
class DecodedPicture:
    """Hold a decoded picture: 8-bit RGB, its alpha (8 bits) unless all is opaque, and whether 16 bits became dim."""

    colours: Image.Image
    alpha: Image.Image | None = None
    is_dim: bool = False


def decode_picture(data: bytes, size: int | None = None, rules: PictureRules | None = None) -> DecodedPicture:
    """Decode a picture. `size`: the caller will scale the shorter side to it, so a huge JPEG may be decoded smaller.

    Raises InputError if it has more pixels than may be decoded, and whatever Pillow raises on bytes that it cannot
    read. Call it within `strict_pillow`.
    """
    rules = rules or PictureRules()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if _pixels(image) > rules.most_pixels and size is not None:
            image.draft(None, (size, size))
        if _pixels(image) > rules.most_pixels:
            shape = f"{image.width}x{image.height} pixels, more than {rules.most_pixels:,}"
            raise InputError(f"has {shape}; give --max-pixels {_pixels(image)} to decode it all the same")
        with _large if _pixels(image) > MOST_PIXELS else contextlib.nullcontext():
            return _opened(image, rules)


def read_picture(data: bytes) -> DecodedPicture:
    """Decode the one picture of a reference or a trigger. Raises InputError, which says why it cannot be decoded."""
    try:
        with strict_pillow():
            return decode_picture(data, rules=PictureRules(with_alpha=True))
    except InputError:
        raise InputError(f"has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders raise nearly any exception on malicious bytes
        raise InputError(f"not a readable picture: {fault(error)}") from None


def fault(error: Exception) -> str:
    """Return why a picture cannot be decoded."""
    return "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _opened(image: Image.Image, rules: PictureRules) -> DecodedPicture:
    is_wide = ";16" in str(getattr(image, "tile", "")) or image.mode.startswith("I")
    turn = _orientation(image) if rules.turns else None
    image.load()
    alpha, colours = _alpha(image) if rules.with_alpha else None, _to_rgb(image)
    if turn is not None:
        colours = colours.transpose(turn)
        alpha = alpha and alpha.transpose(turn)
    is_dim = is_wide and max(high for _, high in colours.getextrema()) < DIM  # type: ignore[misc]
    return DecodedPicture(colours, alpha, is_dim)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    if image.format == "TIFF":
        return None  # Pillow turns it
    with contextlib.suppress(Exception):  # damaged EXIF data says nothing
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    return None


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel, None if every pixel is opaque."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if not has_alpha and (image.mode not in ("1", "L", "P", "RGB") or "transparency" not in image.info):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] != 255 else None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Drop alpha and expand grey and palettes. Raises ValueError for pixels without a defined range."""
    if image.mode == "F":
        raise ValueError("floating point pixels have no defined range")
    if image.mode == "I" and image.format not in WIDE_FORMATS:
        raise ValueError("32-bit integer pixels have no defined range; store 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGB")


@functools.cache
def _silence_libtiff() -> None:
    """Take libtiff's lines on damaged files off stderr: Pillow raises what they say. Only Linux says where it lies."""
    with contextlib.suppress(OSError, AttributeError), open("/proc/self/maps") as maps:
        for path in {line.split(maxsplit=5)[-1].strip() for line in maps if "libtiff" in line}:
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, and its own limit of pixels, which `decode_picture` replaces."""
    _silence_libtiff()
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
