"""Draw the figures of a report as PNG.

Matplotlib draws on the Agg canvas, without pyplot, with its own defaults and bundled font. So equal input gives equal
bytes. The colours are Okabe and Ito's, which the colour-blind tell apart. Clean is always blue, triggered vermilion.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sslbd_cli.words import one_line

CLEAN, TRIGGERED, CALIBRATION, INK, FAINT = "#0072B2", "#D55E00", "#7A7A7A", "#222222", "#BBBBBB"
CYCLE = (CLEAN, TRIGGERED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", CALIBRATION)
LINES = ("-", "--", "-.", ":")
#: Markers of up to three estimates in the overview: two measurements, then the control.
MARKS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "markersize": 7, "color": CLEAN},
    {"marker": "D", "markersize": 7, "color": TRIGGERED},
    {"marker": "D", "markersize": 7, "color": TRIGGERED, "markerfacecolor": "white"},
)
DPI = 150
COLUMNS = 6  # images side by side: still readable on a phone
LETTER = 9  # largest width of a letter of a title, in pixels
TILE = 160  # pixels that a small image is enlarged to, by whole factors
STYLE: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # labels are file and class names, where `$` starts no formula
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


@dataclass(frozen=True)
class PictureRows:
    """Rows of pictures under one title. rows: label and uint8 K,C,H,W each. captions: K texts below the last row."""

    title: str
    colour: str
    rows: Sequence[tuple[str, np.ndarray]]
    captions: Sequence[str] = ()


# --- charts -------------------------------------------------------------------------------------------------------


def overview(rows: Sequence[tuple[str, dict[str, tuple[float, float, float]]]]) -> bytes:
    """Draw estimates with intervals, one line per report. rows: label and name -> (value, low, high)."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    looks = dict(zip(names, MARKS, strict=False))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (_, values) in enumerate(rows):
            for name, (value, low, high) in values.items():
                y = at + (names.index(name) - (len(names) - 1) / 2) * 0.24
                axes.plot([low, high], [y, y], color=looks[name]["color"], linewidth=2, alpha=0.5)
                axes.plot(value, y, linestyle="", **looks[name])
        for name, look in looks.items():
            axes.plot([], [], linestyle="", label=_short(name), **look)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="share of test images")
        axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows])
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=len(names), handletextpad=0.1)

    return render(draw, 6.4, 1.1 + 0.6 * len(rows))


def histogram(groups: dict[str, np.ndarray], threshold: float | None) -> bytes:
    """Draw a histogram of the scores (float, any length) of each group. The outer bins hold the extremes, too."""
    finite = {name: scores[np.isfinite(scores)] for name, scores in groups.items()}
    low, high = _span(np.concatenate(list(finite.values())), threshold)
    bins = np.linspace(low, high, 41).tolist()
    colours = {"calibration": CALIBRATION, "clean": CLEAN, "not flagged": CALIBRATION}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, scores in finite.items():
            colour = next((c for word, c in colours.items() if word in name), TRIGGERED)
            share = np.full(len(scores), 100 / max(len(scores), 1))
            inside, label = scores.clip(low, high), f"{name} ({len(scores):,})"
            line = "--" if "calibration" in name else "-"
            axes.hist(inside, bins, weights=share, histtype="stepfilled", color=colour, alpha=0.22)
            axes.hist(inside, bins, weights=share, histtype="step", color=colour, linestyle=line, lw=1.6, label=label)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.4, linestyle=":", label=f"threshold {threshold:.4g}")
        axes.set(xlabel="score (higher is more suspicious)", ylabel="% of the group's images", xlim=(low, high))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.04)
        figure.legend(loc="outside upper left", ncols=2)

    return render(draw, 6.0, 4.4)


def _span(scores: np.ndarray, threshold: float | None) -> tuple[float, float]:
    """Return the range to draw: it holds the threshold and all but the most extreme scores."""
    inside = np.quantile(scores.clip(-1e100, 1e100), [0.002, 0.998]) if len(scores) else np.array([0.0, 1.0])
    ends = np.append(inside, [] if threshold is None else np.clip(threshold, -1e100, 1e100))
    low, high = float(ends.min()), float(ends.max())
    # never so narrow that the edges of the bins coincide
    margin = max(0.04 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-9)
    return low - margin, high + margin


def roc(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float | None = None, positive: str = "triggered"
) -> bytes:
    """Draw ROC curves of name -> (scores float N, poisoned bool N), and mark the threshold if there is one."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1.2, label="chance")
        for at, (name, (scores, poisoned)) in enumerate(curves.items()):
            colour = TRIGGERED if len(curves) == 1 else CYCLE[at % len(CYCLE)]
            look: dict[str, Any] = {
                "color": colour,
                "linestyle": LINES[at % len(LINES)],
                "linewidth": 2,
                "clip_on": False,
            }
            axes.plot(*roc_points(scores, poisoned), label=_short(name), **look)
            if threshold is not None:
                over = scores > threshold
                point = over[~poisoned].mean(), over[poisoned].mean()
                axes.plot(*point, "o", color=INK, markersize=7, label=f"threshold {threshold:.4g}", clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="clean images flagged (FPR)", ylabel=f"{positive} images found (TPR)")
        axes.set_aspect("equal")
        axes.legend(loc="lower right")

    return render(draw, 4.6, 4.4)


def roc_points(scores: np.ndarray, poisoned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return FPR and TPR at each distinct threshold, from no image flagged to all. Equal scores make one step."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
    hits = np.cumsum(poisoned[order])[last]
    alarms = last + 1 - hits
    return np.append(0, alarms / max(alarms[-1], 1)), np.append(0, hits / max(hits[-1], 1))


def places(groups: Sequence[tuple[str, np.ndarray, str, str]], variance: tuple[float, float]) -> bytes:
    """Draw points on a plane. groups: label, float K,2, colour, marker. variance: shares on the two axes."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, points, colour, marker in groups:
            look: dict[str, Any] = {"color": colour, "alpha": 0.6, "linewidths": 0.8}
            axes.scatter(points[:, 0], points[:, 1], s=22, marker=marker, label=f"{name} ({len(points):,})", **look)
        axes.set_xlabel(f"main direction ({100 * variance[0]:.0f} % of the variance)")
        axes.set_ylabel(f"second ({100 * variance[1]:.0f} %)")
        axes.set_xticks([])
        axes.set_yticks([])
        figure.legend(loc="outside upper left", ncols=1)

    return render(draw, 4.8, 4.8)


def bars(rows: Sequence[tuple[str, float, bool]], level: float) -> bytes:
    """Draw a bar per row. rows: label, share, whether it exceeds chance (coloured). level: the share by chance."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [TRIGGERED if is_beyond else CALIBRATION for _, _, is_beyond in rows]
        axes.barh(range(len(rows)), [share for _, share, _ in rows], color=colours, height=0.62)
        axes.axvline(level, color=INK, linewidth=1.2, linestyle=":", label=f"expected of clean images: {level:g}")
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="share of the images flagged")
        axes.set_yticks(range(len(rows)), [_short(label) for label, _, _ in rows])
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left")

    return render(draw, 6.4, 1.2 + 0.34 * len(rows))


def retrieval(scores: np.ndarray, poisoned: np.ndarray, flagged: np.ndarray | None) -> bytes:
    """Draw precision and recall of the k images of highest score, k = 1 to N. scores: float N. poisoned: bool N.

    flagged: bool N, the images that the detector flags, not always those of highest score. Points mark them.
    """
    count, base = len(scores), float(poisoned.mean())
    counts, hits = retrieved(scores, poisoned)
    removed = 0 if flagged is None else int(flagged.sum())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        curves = (("precision", hits / counts, CYCLE[2], "-"), ("recall", hits / poisoned.sum(), INK, "--"))
        for name, values, colour, line in curves:
            axes.plot(counts, values, color=colour, linestyle=line, linewidth=2, label=name, clip_on=False)
        axes.axhline(base, color=CALIBRATION, linewidth=1.4, linestyle=":", label=f"base rate {100 * base:.3g} %")
        if flagged is not None and removed:
            axes.axvline(removed, color=TRIGGERED, linewidth=1.4, linestyle="-.", label=f"flagged: {removed:,}")
            right = int((flagged & poisoned).sum())
            # the larger point stays visible where both coincide
            for share, size, (_, _, colour, _) in zip(
                (right / removed, right / poisoned.sum()), (12, 7), curves, strict=True
            ):
                look: dict[str, Any] = {"markersize": size, "mfc": colour, "mec": "white", "mew": 1.5}
                axes.plot(removed, share, "o", **look, clip_on=False, zorder=3)
        axes.set_xscale("log")
        axes.set(xlim=(1, max(count, 2)), ylim=(0, 1), xlabel="k images of highest score", ylabel="share")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if count < 20 else "")
        figure.legend(loc="outside upper left", ncols=2)

    return render(draw, 6.0, 4.4)


def retrieved(scores: np.ndarray, poisoned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return up to a thousand values of k in 1 to N, and the number of poisoned images among the k of highest score.

    For equal scores the number is the mean over all their orders, so that the order of the dataset has no effect.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, count = scores[order], len(scores)
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), count - 1)  # of each run of equal scores
    counts = np.unique(np.geomspace(1, count, 1000).round())
    return counts, np.interp(counts, np.append(0, last + 1), np.append(0, np.cumsum(poisoned[order])[last]))


def confusions(tables: dict[str, np.ndarray]) -> bytes:
    """Draw confusion matrices side by side (counts C,C, rows are true classes), each row as shares of its class."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for axes, (title, table) in zip(panels, tables.items(), strict=True):
            shares = table / np.maximum(table.sum(1, keepdims=True), 1)
            picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            step = max(1, math.ceil(len(table) / 20))
            axes.set_xticks(range(0, len(table), step), range(0, len(table), step), fontsize=8)
            axes.set_yticks(range(0, len(table), step), range(0, len(table), step), fontsize=8)
            axes.set(title=title, xlabel="predicted class")
            axes.grid(visible=False)
        panels[0].set_ylabel("true class")
        figure.colorbar(picture, ax=list(panels), label="share of the true class", shrink=0.8)

    return render(draw, 1.3 + 2.6 * len(tables), 3.1)


# --- pictures -----------------------------------------------------------------------------------------------------


def board(blocks: Sequence[PictureRows]) -> bytes:
    """Lay pictures out in rows of at most COLUMNS. Small pictures are enlarged by nearest neighbour."""
    blocks = [part for block in blocks for part in _wrap(block)]
    width, height = _tile(blocks[0].rows[0][1])
    left, gap, caption = 44, 8, 34
    columns = max(len(images) for block in blocks for _, images in block.rows)
    wide = left + max(columns * (width + gap), *(LETTER * len(block.title) for block in blocks), 0)
    tall = gap + sum(_title(b) + len(b.rows) * (height + gap) + (caption if b.captions else 0) for b in blocks)
    canvas = np.full((tall, wide, 3), 255, np.uint8)
    texts: list[tuple[float, float, str, dict[str, Any]]] = []
    y = gap
    for block in blocks:
        title, bold = _title(block), {"color": block.colour, "weight": "bold", "va": "center"}
        texts.append((left, y + title / 2, block.title, bold))
        y += title
        for name, images in block.rows:
            texts.append((left / 2, y + height / 2, name[:14], {"rotation": 90, "va": "center", "ha": "center"}))
            for x, image in zip(range(left, wide, width + gap), images, strict=False):
                canvas[y : y + height, x : x + width] = enlarge(image, width, height)
            y += height + gap
        for x, text in zip(range(left, wide, width + gap), block.captions, strict=False):
            texts.append((x + width / 2, y + caption / 2 - gap, text, {"ha": "center", "va": "center"}))
        y += caption if block.captions else 0
    return compose(canvas, texts)


def _wrap(block: PictureRows) -> list[PictureRows]:
    """Break rows that are longer than COLUMNS. Only the first part keeps the title."""
    count = len(block.rows[0][1])
    return [
        PictureRows(
            block.title if start == 0 else "",
            block.colour,
            [(name, images[start : start + COLUMNS]) for name, images in block.rows],
            block.captions[start : start + COLUMNS],
        )
        for start in range(0, count, COLUMNS)
    ]


def _title(block: PictureRows) -> int:
    return 46 if block.title else 6


def _tile(images: np.ndarray) -> tuple[int, int]:
    height, width = images.shape[2:]
    factor = max(1, TILE // max(width, height))
    shrink = min(1.0, 2 * TILE / (factor * max(width, height)))
    return max(1, round(width * factor * shrink)), max(1, round(height * factor * shrink))


def enlarge(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture uint8 C,H,W to height,width,3. A single channel is drawn as a heat map from black to bright.

    Whole factors repeat the pixels. Other factors average or interpolate them.
    """
    if len(image) == 1:
        pixels = matplotlib.colormaps["magma"](image[0], bytes=True)[:, :, :3]
    else:
        pixels = image.transpose(1, 2, 0)
    if width % image.shape[2] == 0 == height % image.shape[1]:
        method = Image.Resampling.NEAREST
    else:
        method = Image.Resampling.BOX if width < image.shape[2] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), method))


# --- rendering ----------------------------------------------------------------------------------------------------


def compose(canvas: np.ndarray, texts: Sequence[tuple[float, float, str, dict[str, Any]]]) -> bytes:
    """Write texts on a canvas uint8 H,W,3 and return it as PNG. texts: x and y in pixels, text, style."""
    tall, wide = canvas.shape[:2]

    def draw(figure: Figure) -> None:
        figure.figimage(canvas, 0, 0, origin="upper")
        for x, y, text, style in texts:
            figure.text(x / wide, 1 - y / tall, one_line(text), **({"size": 11} | style))

    return render(draw, wide / DPI, tall / DPI, layout="none")


def render(draw: Callable[[Figure], None], width: float, height: float, layout: Any = "constrained") -> bytes:
    """Draw on a new figure and return it as PNG. width, height: in inches."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a label in a script that the bundled font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        # half a pixel more, because the canvas rounds its size down
        figure = Figure((width + 0.5 / DPI, height + 0.5 / DPI), dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= 44 else text[:43] + "…"
