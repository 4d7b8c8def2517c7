"""Draw the most suspicious images of a training set with windows outlined, the windows' content, and the trigger.

Images are enlarged first. The outline is drawn around the window afterwards, so that it hides nothing of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sslbd_cli.report import plots
from sslbd_cli.report.plots import CLEAN, INK, TRIGGERED

COLUMNS, TILE = 5, 160  # images side by side and pixels of each: readable on a phone
PATCHES, PATCH = 10, 60  # the same for the content of the windows
LEFT, GAP, LINE = 14, 16, 30  # pixels: margin, between images, per line of text
#: The outline from the outside in: pixels that it is wider than the window, and its colour.
OUTLINE = ((5, (20, 20, 20)), (4, (213, 94, 0)), (1, (255, 255, 255)))
EDGE = OUTLINE[0][0]


@dataclass(frozen=True)
class Suspects:
    """The most suspicious images of a detector, highest score first. Any part may be missing.

    images: uint8 K,3,H,W. windows: int K,4 as x, y, width and height; zeros mean no window. scores: float K. poisoned:
    bool K. patches: uint8 K,3,S,S, the content of the windows. trigger: uint8 1,3,S,S, the recovered trigger.
    """

    images: np.ndarray | None = None
    windows: np.ndarray | None = None
    scores: np.ndarray | None = None
    poisoned: np.ndarray | None = None
    patches: np.ndarray | None = None
    trigger: np.ndarray | None = None


@dataclass
class _Canvas:
    """Pictures and texts with their places. The canvas grows downwards to hold them all."""

    wide: int
    tall: int = 0
    pastes: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)

    def paste(self, x: int, y: int, pixels: np.ndarray) -> None:
        self.pastes.append((x, y, pixels))
        self.tall = max(self.tall, y + len(pixels))

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.texts.append((x, y, text, {"va": "center", "color": INK} | style))
        self.tall = max(self.tall, round(y + LINE / 2))

    def png(self) -> bytes:
        pixels = np.full((self.tall + LEFT, self.wide, 3), 255, np.uint8)
        for x, y, part in self.pastes:
            pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        return plots.compose(pixels, self.texts)


def contact(suspects: Suspects) -> bytes:
    """Draw the recovered trigger beside the content of the windows, and the images with their windows below."""
    canvas = _Canvas(2 * LEFT + COLUMNS * (TILE + GAP))
    _patches(canvas, suspects)
    if suspects.images is not None:
        _images(canvas, suspects, suspects.images)
    return canvas.png()


def _patches(canvas: _Canvas, suspects: Suspects) -> None:
    x = LEFT
    if suspects.trigger is not None:
        canvas.write(x, LINE / 2 + 4, "recovered trigger", weight="bold")
        canvas.paste(x, LINE + 8, _enlarged(suspects.trigger[0], TILE))
        x += TILE + 84
    if suspects.patches is not None:
        canvas.write(x, LINE / 2 + 4, "content of the windows, highest score first", weight="bold")
        for at, patch in enumerate(suspects.patches):
            row, column = divmod(at, PATCHES)
            canvas.paste(x + column * (PATCH + 4), LINE + 8 + row * (PATCH + 4), _enlarged(patch, PATCH))


def _images(canvas: _Canvas, suspects: Suspects, images: np.ndarray) -> None:
    top = canvas.tall + (GAP if canvas.tall else 0)
    title = "images of highest score" + ("" if suspects.windows is None else ", windows outlined")
    canvas.write(LEFT, top + LINE / 2 + 4, title, weight="bold")
    captions = [_captions(suspects, row) for row in range(len(images))]
    tiles = [
        _tile(image, None if suspects.windows is None else suspects.windows[at]) for at, image in enumerate(images)
    ]
    centred = (TILE + 2 * EDGE - tiles[0].shape[1]) // 2  # narrow images in the middle of their captions
    step = len(tiles[0]) + LINE * len(captions[0]) + GAP
    for at, (tile, texts) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(at, COLUMNS)
        x, y = LEFT - EDGE + centred + column * (TILE + GAP), top + LINE + 8 - EDGE + row * step
        canvas.paste(x, y, tile)
        for line, (text, style) in enumerate(texts):
            middle = y + len(tile) + LINE * (line + 0.5) - 2
            canvas.write(x + tile.shape[1] / 2, middle, text, ha="center", **style)


def _captions(suspects: Suspects, row: int) -> Sequence[tuple[str, dict[str, Any]]]:
    """Return the lines below an image: rank and score, then the truth as a sign and a word in a colour."""
    text = f"{row + 1}"
    if suspects.scores is not None:
        text += ":  " + f"{suspects.scores[row]:#.3g}".rstrip(".")
    lines: list[tuple[str, dict[str, Any]]] = [(text, {"size": 11 if len(text) <= 12 else 8})]
    if suspects.poisoned is not None:
        word, colour = ("● poisoned", TRIGGERED) if suspects.poisoned[row] else ("○ clean", CLEAN)
        lines.append((word, {"color": colour, "weight": "bold"}))
    return lines


def _tile(image: np.ndarray, window: np.ndarray | None) -> np.ndarray:
    """Enlarge an image and outline its window. A margin holds the outline of a window at the border."""
    pixels = _enlarged(image, TILE)
    tile = np.pad(pixels, ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), constant_values=255)
    place = None if window is None else _place(window, image.shape[1:], pixels.shape)
    if place is None:
        return tile
    left, top, right, bottom = (side + EDGE for side in place)
    inside = tile[top:bottom, left:right].copy()
    for wider, colour in OUTLINE:
        tile[top - wider : bottom + wider, left - wider : right + wider] = colour
    tile[top:bottom, left:right] = inside
    return tile


def _place(window: np.ndarray, size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a window on the enlarged image, or None if it is empty or outside."""
    x, y, width, height = map(int, window)
    if width <= 0 or height <= 0:
        return None
    sides = []
    for low, high, pixels, wanted in ((x, x + width, size[1], shape[1]), (y, y + height, size[0], shape[0])):
        low, high = (min(max(side, 0), pixels) for side in (low, high))
        if low == high:
            return None
        start = min(round(low * wanted / pixels), wanted - 1)
        sides.append((start, max(start + 1, round(high * wanted / pixels))))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image uint8 C,H,W to height,width,3, at most `side` pixels each. Factors above 3 are whole numbers."""
    height, width = image.shape[1:]
    factor = side / max(height, width)
    if factor >= 3:
        factor = int(factor)
    return plots.enlarge(image, max(1, round(width * factor)), max(1, round(height * factor)))
