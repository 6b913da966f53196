"""Matplotlib pictures as inline SVG, in one calm style; no display and no global state needed."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsign.kernels.engine import is_ours

INK, MUTED, GRID, PALE = "#1f2933", "#616e7c", "#e4e7eb", "#cbd2d9"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2f6fae", "#c9752d", "#4f8a5b", "#8064a2", "#a83f4b"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
    "axes.edgecolor": PALE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sparsign",
}


styled = matplotlib.rc_context(STYLE)
"""Decorates a function that draws, from its first line to the saved picture."""


@styled
def svg(figure: Figure) -> str:
    """The figure as an <svg> element, to be put into a page; without comments and indentation, a tenth of it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    text = re.sub(r"\s*<!--.*?-->|(?<=\n) +", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]


def axes(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure, sizes in inches, and its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def bytes_text(count: float, _: object = None) -> str:
    """`1.2 MB`: a tick label."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:g} {unit}"
    return f"{count:g} B"


@styled
def layer_sizes(layers: Sequence[dict[str, Any]]) -> str:
    """Bytes by layer, fp32 of the uncut layer against its sections in the file, joined by a line; log scale."""
    figure, (ax,) = axes(7.6, _height(layers))
    places = range(len(layers))
    before = [max(1, row["float_bytes"]) for row in layers]
    after = [max(1, row["packed_bytes"]) for row in layers]
    ax.hlines(places, after, before, color=PALE, linewidth=2.2)
    ax.scatter(before, places, color=MUTED, s=22, label="fp32", zorder=3)
    ax.scatter(after, places, color=BLUE, s=22, label="in the file", zorder=3)
    for place, (b, a, row) in enumerate(zip(before, after, layers, strict=True)):
        text = f"{b / a:.0f}×" if row["packed_bytes"] else "gone"
        ax.annotate(text, (b, place), (7, 0), textcoords="offset points", va="center", color=MUTED, fontsize=8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(bytes_text)
    ax.margins(x=0.08)
    _name_layers(ax, layers)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.3, borderpad=0)
    return svg(figure)


@styled
def kept_filters(layers: Sequence[dict[str, Any]]) -> str:
    """Per cent of every layer's filters that are kept (bars) and of its weights that are not zero (marks)."""
    figure, (ax,) = axes(7.6, _height(layers))
    places = range(len(layers))
    kept = [100 * row["shape"][0] / row["full_shape"][0] for row in layers]
    nonzero = [100 * row["nonzero_weights"] / max(1, math.prod(row["full_shape"])) for row in layers]
    ax.barh(places, [100] * len(layers), height=0.62, color=GRID)
    ax.barh(places, kept, height=0.62, color=BLUE, label="filters kept")
    ax.scatter(
        nonzero, places, marker="|", s=90, linewidth=2, color=ORANGE, label="nonzero weights", zorder=3, clip_on=False
    )
    for place, row in enumerate(layers):
        text = f"{row['shape'][0]} of {row['full_shape'][0]}"
        ax.annotate(text, (100, place), (6, 0), textcoords="offset points", va="center", color=MUTED, fontsize=8)
    ax.set_xlim(0, 100)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    ax.grid(visible=False, axis="y")
    _name_layers(ax, layers)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.5, borderpad=0)
    return svg(figure)


LONGEST_BAR = 1.6
"""Of the slowest rival but one: what takes longer still is cut off, or the others could not be told apart."""


@styled
def speeds(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds per call of every engine, the fastest on top, one panel per batch size and thread count.

    Beside the bar of a rival stands how many times faster the packed engine is (0.50 if it is half as fast).
    """
    cells = list(dict.fromkeys((row["batch"], row["threads"]) for row in rows))
    per_cell = max(sum((r["batch"], r["threads"]) == cell for r in rows) for cell in cells)
    figure, panels = axes(7.6, len(cells) * (0.55 + 0.3 * per_cell), rows=len(cells))
    for ax, (batch, threads) in zip(panels, cells, strict=True):
        mine = sorted((r for r in rows if (r["batch"], r["threads"]) == (batch, threads)), key=_milliseconds)
        ours = min((r for r in mine if is_ours(r["engine"])), key=_milliseconds, default=None)
        end = LONGEST_BAR * _milliseconds(mine[-2] if len(mine) > 1 else mine[-1])
        lengths = [min(_milliseconds(row), end) for row in mine]
        colors = [BLUE if is_ours(row["engine"]) else PALE for row in mine]
        ax.barh(range(len(mine)), lengths, height=0.62, color=colors)
        for place, (row, length) in enumerate(zip(mine, lengths, strict=True)):
            text = f"{_milliseconds(row):.3g} ms"
            if ours is not None and not is_ours(row["engine"]):
                text += f" · the engine is {_milliseconds(row) / _milliseconds(ours):.1f}× as fast"
            if length == end:
                ax.annotate("//", (0.97 * length, place), ha="right", va="center", color="white", weight="bold")
            ax.annotate(text, (length, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(range(len(mine)), [named(row) for row in mine])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.5 * max(lengths))
        ax.grid(visible=False, axis="y")
        ax.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
    panels[-1].set_xlabel("milliseconds per call, median")
    return svg(figure)


@styled
def speedups(measured: Sequence[tuple[str, float]], theoretical: Sequence[tuple[str, float]]) -> str:
    """(what, times as fast) of what was measured, blue, and of what was counted, hollow, on one axis."""
    rows = [*measured, *theoretical]
    figure, (ax,) = axes(7.6, 0.55 + 0.3 * len(rows))
    bars = ax.barh(range(len(rows)), [times for _, times in rows], height=0.62, color=BLUE)
    for bar in bars[len(measured) :]:
        bar.set(facecolor="none", edgecolor=MUTED, linestyle=(0, (3, 2)))
    ax.bar_label(bars, [f"{times:.1f}×" for _, times in rows], padding=5, fontsize=8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * max(times for _, times in rows))
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("times as fast; dashed: counted, not measured")
    return svg(figure)


def named(row: dict[str, Any]) -> str:
    """What an engine of a row of speed is called among people."""
    return f"this file, {row['isa']}" if is_ours(row["engine"]) else f"uncut, {row['engine']}"


def _milliseconds(row: dict[str, Any]) -> float:
    return row["milliseconds"]


def _height(layers: Sequence[dict[str, Any]]) -> float:
    return 0.7 + 0.21 * len(layers)


def _name_layers(ax: Axes, layers: Sequence[dict[str, Any]]) -> None:
    ax.set_yticks(range(len(layers)), [row["name"] for row in layers], fontsize=8)
    ax.set_ylim(len(layers) - 0.4, -0.6)
