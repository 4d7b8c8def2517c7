"""The report's figures as PNG: what an array shows, drawn so that a person decides at a glance.

Drawn without pyplot on the Agg canvas, from matplotlib's own defaults and bundled font: equal input gives equal bytes.
Colours are Okabe and Ito's, told apart by the colour-blind; clean is always blue, triggered always vermilion.
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
#: Looks of up to three estimates in the overview: two measured ones, then a control.
MARKS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "markersize": 7, "color": CLEAN},
    {"marker": "D", "markersize": 7, "color": TRIGGERED},
    {"marker": "D", "markersize": 7, "color": TRIGGERED, "markerfacecolor": "white"},
)
DPI = 150
COLUMNS = 6  # images side by side: still readable on a phone
LETTER = 9  # pixels that a letter of a title takes at most
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
    "text.parse_math": False,  # labels come from file names and class names: a `$` means a `$`
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


@dataclass(frozen=True)
class PictureRows:
    """Rows of pictures under one title. rows: label and uint8 K,C,H,W each; captions: K lines under the last row."""

    title: str
    colour: str
    rows: Sequence[tuple[str, np.ndarray]]
    captions: Sequence[str] = ()


# --- charts -------------------------------------------------------------------------------------------------------


def overview(rows: Sequence[tuple[str, dict[str, tuple[float, float, float]]]]) -> bytes:
    """Draw estimates with intervals, (value, low, high) by name, one line of the chart per report."""
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
    """Draw how scores (float, any length) of each group are distributed; extremes are gathered in the outer bins."""
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
    """Choose the range drawn: all but the most extreme scores, and the threshold."""
    inside = np.quantile(scores.clip(-1e100, 1e100), [0.002, 0.998]) if len(scores) else np.array([0.0, 1.0])
    ends = np.append(inside, [] if threshold is None else np.clip(threshold, -1e100, 1e100))
    low, high = float(ends.min()), float(ends.max())
    # never so narrow that the edges of the bins coincide
    margin = max(0.04 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-9)
    return low - margin, high + margin


def roc(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float | None = None, positive: str = "triggered"
) -> bytes:
    """Draw ROC curves of (scores float N, poisoned bool N); the threshold's place is marked where one is given."""

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
    """Return FPR and TPR at every distinct threshold, from none flagged to all; ties move both at once."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
    hits = np.cumsum(poisoned[order])[last]
    alarms = last + 1 - hits
    return np.append(0, alarms / max(alarms[-1], 1)), np.append(0, hits / max(hits[-1], 1))


def places(groups: Sequence[tuple[str, np.ndarray, str, str]], variance: tuple[float, float]) -> bytes:
    """Draw where images lie, groups of label, float K,2, colour and marker; variance: shares that the axes hold."""

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
    """Draw a share for each label, those that are beyond chance in another colour; level: what chance comes to."""

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
    """Draw precision and recall of the k images of highest score (float N, truth bool N), k = 1 to N.

    flagged: bool N, the detector's own decision, which need not be the first of the ranking: marked as points.
    """
    count, base = len(scores), float(poisoned.mean())
    taken, hits = retrieved(scores, poisoned)
    removed = 0 if flagged is None else int(flagged.sum())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        curves = (("precision", hits / taken, CYCLE[2], "-"), ("recall", hits / poisoned.sum(), INK, "--"))
        for name, values, colour, line in curves:
            axes.plot(taken, values, color=colour, linestyle=line, linewidth=2, label=name, clip_on=False)
        axes.axhline(base, color=CALIBRATION, linewidth=1.4, linestyle=":", label=f"base rate {100 * base:.3g} %")
        if flagged is not None and removed:
            axes.axvline(removed, color=TRIGGERED, linewidth=1.4, linestyle="-.", label=f"flagged: {removed:,}")
            right = int((flagged & poisoned).sum())
            # the one around the other where they coincide
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
    """Return up to a thousand k from 1 to N and how many poisoned images the k of highest score hold.

    Among equal scores it is the mean over their orders, so that the order of the dataset says nothing.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, count = scores[order], len(scores)
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), count - 1)  # of each run of equal scores
    taken = np.unique(np.geomspace(1, count, 1000).round())
    return taken, np.interp(taken, np.append(0, last + 1), np.append(0, np.cumsum(poisoned[order])[last]))


def confusions(tables: dict[str, np.ndarray]) -> bytes:
    """Draw confusion matrices (counts C,C, true classes in rows) side by side, each row as shares of its class."""

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
    """Lay pictures out, COLUMNS side by side at most, small ones enlarged pixel by pixel (nearest neighbour)."""
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
    """Break rows that are longer than COLUMNS; only the first part keeps the title."""
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
    """Resize a picture uint8 C,H,W to height,width,3; one channel is a heat map, black to bright.

    Whole factors keep the pixels as they are; other sizes are averaged or interpolated.
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
    """Return a canvas uint8 H,W,3 as PNG, with texts (x and y in pixels, text, style) written on it."""
    tall, wide = canvas.shape[:2]

    def draw(figure: Figure) -> None:
        figure.figimage(canvas, 0, 0, origin="upper")
        for x, y, text, style in texts:
            figure.text(x / wide, 1 - y / tall, one_line(text), **({"size": 11} | style))

    return render(draw, wide / DPI, tall / DPI, layout="none")


def render(draw: Callable[[Figure], None], width: float, height: float, layout: Any = "constrained") -> bytes:
    """Draw on a fresh figure, width and height in inches, and return it as PNG."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a label in a script that the bundled font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        # half a pixel more than wanted: the canvas rounds its size down
        figure = Figure((width + 0.5 / DPI, height + 0.5 / DPI), dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= 44 else text[:43] + "…"
