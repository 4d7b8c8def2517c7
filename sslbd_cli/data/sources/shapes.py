"""Draw the `shapes` dataset: ten classes of textured figures over cluttered backgrounds, from a seed only.

A class is a figure and its two-tone texture. Colour, place, size, tilt, background and the object in front do not
depend on the class. Figures cover equal areas, and textures are half one tone and half the other, so colour statistics
do not reveal the class. The two tones differ in luminance, so grayscale views keep the texture. Chroma stays low, so a
saturated multi-colour patch (a trigger) resembles nothing in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from sslbd_cli.artefacts import paging
from sslbd_cli.data.source import Catalogue, Source, SourceWish
from sslbd_cli.errors import InputError

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from coordinates to signed distances, float32 of equal shape

COUNT, SIZE = 4000, 32  # defaults of --count and --size (pixels)
SMALLEST, LARGEST = 16, 256  # pixels: smaller textures blur together; a block of larger images fills the memory
BLOCK = 50  # images drawn together from one random stream; a multiple of ten, so that every block is balanced
BLOBS = 3  # soft distractors behind the figure; one more lies in front of it
GRIDS = (3, 5, 9)  # cells per side of the octaves of smooth noise
TINT = np.array([1.0, 0.6, 1.2], np.float32)  # spread of hues: wider from blue to orange than from green to purple
TAU = np.float32(2 * np.pi)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _wave(x: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1: 1 at whole numbers, -1 half way between."""
    wave: np.ndarray = 1 - 4 * np.abs(x - np.rint(x))
    return wave


def _both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Combine two signed distances as a checkerboard: positive where their signs agree."""
    nearer: np.ndarray = np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))
    return nearer


def _turns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Angle in turns, -0.5 to 0.5."""
    turns: np.ndarray = np.arctan2(y, x) / TAU
    return turns


#: Signed distance to the edge, positive inside; u, v are in radii of the disc of equal area, v points down.
FIGURES: dict[str, Field] = {
    "disc": lambda u, v: 1 - np.hypot(u, v),
    "square": lambda u, v: 0.886 - np.maximum(np.abs(u), np.abs(v)),
    "triangle": lambda u, v: 0.778 - np.maximum(v, 0.866 * np.abs(u) - 0.5 * v),
    "ring": lambda u, v: 0.333 - np.abs(np.hypot(u, v) - 0.75),
    "cross": lambda u, v: np.minimum(1.19 - np.maximum(np.abs(u), np.abs(v)), 0.397 - np.minimum(np.abs(u), np.abs(v))),
    "star": lambda u, v: 0.8 * (0.97 + 0.4 * _wave(5 * _turns(-v, u)) - np.hypot(u, v)),
    "crescent": lambda u, v: np.minimum(1.28 - np.hypot(u - 0.15, v), np.hypot(u - 0.6, v) - 0.8),
    "hexagon": lambda u, v: 0.952 - np.maximum(np.abs(v), 0.866 * np.abs(u) + 0.5 * np.abs(v)),
    "heart": lambda u, v: 1 - np.hypot(u, v - 0.3 + 0.6 * np.sqrt(np.abs(u) + 0.02)),
    "flower": lambda u, v: 0.8 * (0.98 + 0.28 * np.cos(6 * TAU * _turns(u, v)) - np.hypot(u, v)),
}
#: Signed distance to the change of tone; x, y are in periods; positive over half of every figure.
TEXTURES: dict[str, Field] = {
    "dotted": lambda x, y: 0.39 - np.hypot(x - np.rint(x), y - np.rint(y)),
    "checked": lambda x, y: _both(_wave(x * 0.8), _wave(y * 0.8)) / 4,
    "striped": lambda x, y: _wave(x) / 4,
    "rayed": lambda x, y: _wave(7 * _turns(x, y)) * np.hypot(x, y) * 0.22,
    "quartered": _both,
    "ringed": lambda x, y: _wave(np.hypot(x, y)) / 4,
    "blotched": lambda x, y: (_wave(0.62 * x + 0.2 * y) + _wave(0.55 * y - 0.3 * x) + _wave(0.8 * (x + y))) / 5,
    "zigzag": lambda x, y: _wave(x + 0.4 * _wave(y * 0.6)) / 6,
    "halved": lambda x, y: x,
    "banded": lambda x, y: _wave(y) / 4,
}
CLASSES: tuple[str, ...] = (
    *("dotted-disc", "checked-square", "striped-triangle", "rayed-ring", "quartered-cross"),
    *("ringed-star", "blotched-crescent", "zigzag-hexagon", "halved-heart", "banded-flower"),
)

#: The texts of `--captions`. Each names the figure and its texture.
SENTENCES = (
    "a {size} {texture} {figure} {place} on a {ground} background",
    "a picture of a {texture} {figure}",
    "a {ground} scene with a {size} {figure} that is {texture}, {place}",
    "there is a {texture} {figure} {place}",
    "one {size} {figure}, {texture} all over",
)


class Placement(NamedTuple):
    """A drawn object's place: coordinates u, v B,S,S in radii; radius and centre B,1,1 in image sides."""

    u: np.ndarray
    v: np.ndarray
    radius: np.ndarray
    right: np.ndarray
    down: np.ndarray


class Canvas(NamedTuple):
    """One block's random stream and its pixel centres: x 1,1,S and y 1,S,1, from -0.5 to 0.5, y points down."""

    rng: np.random.Generator
    x: np.ndarray
    y: np.ndarray

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Draw BLOCK,*shape numbers (default: BLOCK,1,1), so that they broadcast over pixels."""
        shares: np.ndarray = self.rng.random((BLOCK, *(shape or (1, 1))), np.float32)
        return low + (high - low) * shares

    def colour(self, luma: np.ndarray, chroma: float) -> np.ndarray:
        """Tint luminances B,1,1 by a random hue that leaves them unchanged: B,3,1,1."""
        tint = self.uniform(-chroma, chroma, 3) * TINT
        tint -= (tint @ LUMA)[:, None]
        return luma[:, None] + tint[:, :, None, None]

    def place(self, reach: float, low: float, high: float) -> Placement:
        """Draw a shifted, tilted and stretched frame."""
        right, down = self.uniform(-reach, reach), self.uniform(-reach, reach)
        x, y = self.x - right, self.y - down
        radius, stretch = self.uniform(low, high), self.uniform(0.87, 1.15)
        tilt = self.uniform(-0.35, 0.35)
        cos, sin = np.cos(tilt) / radius, np.sin(tilt) / radius
        return Placement((x * cos + y * sin) * stretch, (y * cos - x * sin) / stretch, radius, right, down)

    def noise(self, amplitude: np.ndarray | float) -> np.ndarray:
        """Sum octaves of smooth noise, each scaled by a random share of `amplitude` (B,1,1 or a number): B,S,S."""
        total = np.zeros((BLOCK, self.x.size, self.x.size), np.float32)
        for cells in GRIDS:
            nodes = np.linspace(-0.5, 0.5, cells, dtype=np.float32)
            basis = np.exp(-(((self.x[0].T - nodes) * (cells - 1)) ** 2) * np.float32(1.5))
            total += amplitude * self.uniform(0, 1) * (basis @ self.uniform(-1, 1, cells, cells) @ basis.T)
        return total


def _backdrop(canvas: Canvas, luma: np.ndarray) -> np.ndarray:
    """Paint B,3,S,S: a gradient between two tints, smooth noise and soft blobs, around luminance `luma` B,1,1."""
    near, far = canvas.colour(luma, 0.15), canvas.colour(luma + canvas.uniform(-0.2, 0.2), 0.15)
    turn = canvas.uniform(0, TAU)
    ramp = 0.5 + (canvas.x * np.cos(turn) + canvas.y * np.sin(turn)) * 0.8
    image: np.ndarray = near + (far - near) * ramp[:, None]
    for _ in range(BLOBS):
        _blob(canvas, image, luma + canvas.uniform(-0.3, 0.3))
    image += canvas.noise(canvas.uniform(0, 0.15))[:, None]
    return image


def _blob(canvas: Canvas, image: np.ndarray, luma: np.ndarray) -> None:
    """Blend a soft ellipse into `image` B,3,S,S, in place."""
    u, v, *_ = canvas.place(0.6, 0.06, 0.25)
    edge = canvas.uniform(1.5, 6)
    cover = np.clip((1 - np.hypot(u * canvas.uniform(0.5, 1), v)) * edge, 0, 1) * canvas.uniform(0.3, 1)
    image += (canvas.colour(luma, 0.15) - image) * cover[:, None]


def _figure(canvas: Canvas, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Placement]:
    """Shape figures of classes `labels` B. Return cover, share of the second tone and shading, B,S,S, and placement."""
    frame = canvas.place(0.16, 0.3, 0.44)
    u, v = frame.u, frame.v
    shade = 1 + canvas.uniform(-0.15, 0.15) * u + canvas.uniform(-0.15, 0.15) * v
    u, v = u + canvas.noise(0.1), v + canvas.noise(0.1)
    pitch = canvas.uniform(1.1, 1.6)
    x, y = pitch * u + canvas.uniform(-0.2, 0.2), pitch * v + canvas.uniform(-0.2, 0.2)
    cover, tone = np.empty_like(u), np.empty_like(u)
    for label, name in enumerate(CLASSES):
        texture, figure = name.split("-")
        rows = labels == label
        cover[rows] = FIGURES[figure](u[rows], v[rows])
        tone[rows] = TEXTURES[texture](x[rows], y[rows])
    pixels = frame.radius * canvas.x.size
    return np.clip(cover * pixels + 0.5, 0, 1), np.clip(tone * pixels / pitch + 0.5, 0, 1), shade, frame


def _block(size: int, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one block: images uint8 B,3,S,S of classes `labels` B, and the facts for captions, B,4 (see `_words`)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    canvas = Canvas(rng, centres[None, None, :], centres[None, :, None])
    ground = canvas.uniform(0.25, 0.75)
    image = _backdrop(canvas, ground)
    cover, tone, shade, frame = _figure(canvas, labels)
    swing = canvas.uniform(0.22, 0.33) * np.sign(canvas.uniform(-1, 1))
    middle = canvas.uniform(0.3, 0.7)
    first, second = canvas.colour(middle + swing, 0.15), canvas.colour(middle - swing, 0.15)
    paint = (first + (second - first) * tone[:, None]) * shade[:, None]
    image += (paint - image) * cover[:, None]
    _blob(canvas, image, ground)
    image += 0.02 * rng.standard_normal(image.shape, np.float32)
    pixels: np.ndarray = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels, np.concatenate([frame.radius, frame.right, frame.down, ground], axis=1)[:, :, 0]


def draw(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images uint8 N,3,S,S and labels int64 N. Every ten images hold each class once.

    Image i depends on `size`, `seed` and i only, so a longer set starts with the shorter one. Another `size` shows the
    same scenes. Between kinds of machines, rounding may change a pixel by one level.
    """
    return describe(count, size, seed)[:2]


def describe(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw images as `draw` does, and write a caption per image, in one of several forms.

    A caption names figure and texture, and often size, place and background brightness. It depends on `seed` and the
    image's position only. Captions do not change the images.
    """
    images, labels, texts = paging.empty((count, 3, size, size)), np.empty(count, np.int64), list[str]()
    for start in range(0, count, BLOCK):
        rng = np.random.default_rng([seed % 2**64, start // BLOCK])
        classes = rng.permuted(np.tile(np.arange(len(CLASSES)), (BLOCK // len(CLASSES), 1)), axis=1).ravel()
        part = slice(start, min(start + BLOCK, count))
        pixels, facts = _block(size, classes, rng)
        images[part], labels[part] = pixels[: part.stop - start], classes[: part.stop - start]
        paging.note_use(pixels.nbytes)
        kinds = np.random.default_rng([seed % 2**64, start // BLOCK, 1]).integers(len(SENTENCES), size=BLOCK)
        texts += [
            SENTENCES[kind].format(**_words(CLASSES[label], *row)).replace("  ", " ")
            for kind, label, row in zip(kinds, labels[part], facts, strict=False)
        ]
    return images, labels, texts


def _words(name: str, radius: float, right: float, down: float, ground: float) -> dict[str, str]:
    """Put an image's facts into words: class, radius and centre in image sides, luminance of the background."""
    texture, figure = name.split("-")
    side = ("left" if right < 0 else "right") if abs(right) > abs(down) else ("top" if down < 0 else "bottom")
    return {
        "texture": texture,
        "figure": figure,
        "size": "small" if radius < 0.345 else "large" if radius > 0.395 else "",
        "place": f"towards the {side}" if max(abs(right), abs(down)) > 0.06 else "in the middle",
        "ground": "dark" if ground < 0.42 else "bright" if ground > 0.58 else "grey",
    }


@dataclass(frozen=True, kw_only=True)
class Shapes(Source):
    """Draw textured figures of ten classes over clutter (default: --count 4000 --size 32); needs no download.

    Classes differ in figure and texture, never in colour. Another --seed draws a test set of the same classes. With
    --captions, texts describe figure, place, size and background.
    """

    takes: ClassVar[tuple[str, ...]] = ("--count", "--captions")

    def catalogue(self, wish: SourceWish) -> Catalogue:
        size = wish.size or SIZE
        if not SMALLEST <= size <= LARGEST:
            raise InputError(f"--size {size}: expected {SMALLEST} to {LARGEST} pixels")
        count = wish.count or COUNT
        if wish.captions:
            images, labels, texts = describe(count, size, wish.seed)
            return Catalogue(classes=CLASSES, labels=labels, images=images, captions=texts)
        images, labels = draw(count, size, wish.seed)
        return Catalogue(classes=CLASSES, labels=labels, images=images)
