"""What training logged, as pictures: a curve per number, a heat map over epochs per list."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from sparsign.reports.figures import BLUE, GREEN, INK, MUTED, ORANGE, PALE, PURPLE, axes, styled, svg

Row = dict[str, Any]
KIND_COLORS = {"pretrain": BLUE, "prune": ORANGE, "quantize": PURPLE, "finetune": GREEN}
COLUMNS = 2


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics.jsonl, in order; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict) and "stage" in row:
            rows.append(row)
    return rows


def kind(stage: str) -> str:
    """`prune` of `prune-2`."""
    return stage.split("-")[0]


def _numeric(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers(rows: Sequence[Row]) -> list[str]:
    """Metrics that are numbers somewhere and not the same everywhere, in order of appearance."""
    names = dict.fromkeys(k for row in rows for k, v in row.items() if k != "epoch" and _numeric(v))
    return [n for n in names if len({row[n] for row in rows if _numeric(row.get(n))}) > 1]


def lists(rows: Sequence[Row]) -> list[str]:
    """Metrics that are lists of numbers, in order of appearance; a histogram's range belongs to it."""
    found = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, list) and v)
    sound = (k for k in found if all(_numeric(n) for row in rows if isinstance(row.get(k), list) for n in row[k]))
    return [k for k in sound if not k.endswith("_hist_range")]


def positions(rows: Sequence[Row]) -> list[int]:
    """The epoch of the run each row belongs to. What is logged at a stage's end has no `epoch` of its own: it belongs
    to the stage's last one, and takes a place of its own in a stage without epochs."""
    places: list[int] = []
    for k, row in enumerate(rows):
        follows = k > 0 and rows[k - 1]["stage"] == row["stage"] and "epoch" not in row
        places.append(places[-1] + (not follows) if places else 0)
    return places


def spans(rows: Sequence[Row]) -> list[tuple[int, int, str]]:
    """(first row, row after the last, stage) of every unbroken piece of a stage."""
    found: list[tuple[int, int, str]] = []
    for k, row in enumerate(rows):
        if found and found[-1][2] == row["stage"]:
            found[-1] = (found[-1][0], k + 1, row["stage"])
        else:
            found.append((k, k + 1, row["stage"]))
    return found


@styled
def curve_panels(rows: Sequence[Row]) -> str | None:
    """One small panel per number over all epochs of the run, coloured by the kind of stage; None without any."""
    names, places = numbers(rows), positions(rows)
    if not names:
        return None
    lines = math.ceil(len(names) / COLUMNS)
    figure, panels = axes(7.6, 1.75 * lines, rows=lines, columns=COLUMNS)
    for ax, name in zip(panels, names, strict=False):
        for start, stop, stage in spans(rows):
            points = [(places[k], rows[k][name]) for k in range(start, stop) if _numeric(rows[k].get(name))]
            if points:
                marker, color = "o" if len(points) < 12 else None, KIND_COLORS.get(kind(stage), INK)
                ax.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=3)
        _mark_stages(ax, rows, places)
        ax.set_title(name)
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    for ax in panels[max(0, len(names) - COLUMNS) : len(names)]:
        ax.set_xlabel("epoch of the run")
    return svg(figure)


@styled
def heat_maps(rows: Sequence[Row]) -> str | None:
    """One picture per list: epochs to the right, layers or a histogram's values upwards; None without any."""
    names, places = lists(rows), positions(rows)
    if not names:
        return None
    figure, panels = axes(7.6, 2.3 * len(names), rows=len(names))
    for ax, name in zip(panels, names, strict=True):
        length = max(len(row[name]) for row in rows if isinstance(row.get(name), list))
        image = np.full((length, places[-1] + 1), np.nan)
        for place, row in zip(places, rows, strict=True):
            if isinstance(row.get(name), list):
                image[: len(row[name]), place] = row[name]
        # The root of a count shows a small second peak beside a large one.
        norm = PowerNorm(0.5) if name.endswith("_hist") else None
        low, high = next((row[f"{name}_range"] for row in rows if f"{name}_range" in row), (-0.5, length - 0.5))
        place = {"extent": (-0.5, places[-1] + 0.5, low, high), "aspect": "auto", "origin": "lower"}
        shown = ax.imshow(image, norm=norm, cmap="Blues", interpolation="nearest", **place)
        figure.colorbar(shown, ax=ax, pad=0.01, fraction=0.03).outline.set_visible(False)
        _mark_stages(ax, rows, places)
        ax.grid(visible=False)
        ax.set_ylabel(_values_of(name, rows))
        ax.set_title(name)
    panels[-1].set_xlabel("epoch of the run")
    return svg(figure)


def _values_of(name: str, rows: Sequence[Row]) -> str:
    """What a heat map has upwards: `log10 gamma` for the histogram `gamma_log10_hist`."""
    if not name.endswith("_hist"):
        return "layer"
    if not any(f"{name}_range" in row for row in rows):
        return "bin"
    what = name.removesuffix("_hist")
    return f"log10 {what.removesuffix('_log10')}" if what.endswith("_log10") else what


def _mark_stages(ax: Axes, rows: Sequence[Row], places: Sequence[int]) -> None:
    for start, _, _ in spans(rows)[1:]:
        ax.axvline(places[start] - 0.5, color=PALE, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_xlim(-0.5, places[-1] + 0.5)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.tick_params(labelcolor=MUTED)
