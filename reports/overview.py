"""The pictures of RESULTS.md: accuracy against bytes on disk, top-1 against the pruned ratio beside the papers', and
structured against irregular pruning."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from sparsign.papers.ledger import Row
from sparsign.papers.measured import by_setting
from sparsign.papers.published import Published
from sparsign.papers.targets import Target
from sparsign.reports.figures import BLUE, GREEN, INK, MUTED, ORANGE, PALE, PURPLE, RED, axes, bytes_text, styled, svg

DATASETS = {"cifar10": "CIFAR-10", "mnist": "MNIST"}
COLORS = {"ptq": BLUE, "wpc": ORANGE, "stq": GREEN, "admm": PURPLE}
MARKS = "osD^vPX*<>"
ERRORS = [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 7.5, 10, 15, 20, 30, 50, 90]
"""Ticks of an axis of errors, per cent."""


def color(method: str) -> str:
    """One colour per method family; baselines have their own."""
    return next((c for family, c in COLORS.items() if method.startswith(family)), RED)


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _meet(a: Published, b: Published) -> bool:
    """Whether their marks touch in `accuracy_against_bytes`."""
    return abs(a.bytes / b.bytes - 1) < 0.1 and abs((100 - a.top1) / (100 - b.top1) - 1) < 0.1


@styled
def accuracy_against_bytes(ledger: Sequence[Row], published: Sequence[Published]) -> str:
    """One panel per data set: our settings in colour, seeds as a bar from smallest to largest; published ones grey and
    numbered. Upwards the error shrinks by equal factors, so that 91 and 92 % can be told apart."""
    figure, panels = axes(8.6, 3.5 * len(DATASETS), rows=len(DATASETS))
    for ax, (dataset, title) in zip(panels, DATASETS.items(), strict=True):
        drawn: set[str] = set()
        for rows in by_setting(row for row in ledger if row["dataset"] == dataset):
            method, errors = rows[0]["compressor"], [100 - row["top1"] for row in rows]
            size, error = _mean(rows, "packed_bytes"), sum(errors) / len(errors)
            label = None if method in drawn else method
            drawn.add(method)
            ax.plot([size, size], [min(errors), max(errors)], color=color(method), linewidth=1.4, zorder=3)
            mark = "s" if "naive" in method else "o"
            ax.scatter(size, error, color=color(method), marker=mark, s=26, label=label, zorder=3)
        others = [p for p in published if p.dataset == dataset]
        for number, known in enumerate(others, start=1):
            ax.scatter(known.bytes, 100 - known.top1, s=24, marker="D", color=PALE, zorder=2)
            side = -1 if any(_meet(known, other) for other in others[: number - 1]) else 1
            text = {"fontsize": 7, "color": MUTED, "ha": "left" if side > 0 else "right"}
            place = known.bytes, 100 - known.top1
            ax.annotate(str(number), place, (4 * side, 3), textcoords="offset points", **text)
            key = f"{number} {known.method} ({known.year}), {known.network}"
            ax.scatter([], [], s=18, marker="D", color=PALE, label=key)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(bytes_text)
        ax.xaxis.set_minor_formatter(NullFormatter())
        _scale_errors(ax)
        ax.set_title(f"{title}: top-1 against bytes on disk", color=INK)
        ax.margins(x=0.08, y=0.12)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
    panels[-1].set_xlabel("bytes on disk")
    return svg(figure)


def _scale_errors(ax: Axes) -> None:
    """An axis of errors that reads as accuracies."""
    ax.set_yscale("log")
    ax.invert_yaxis()
    ax.yaxis.set_major_locator(FixedLocator(ERRORS))
    ax.yaxis.set_minor_locator(FixedLocator([]))
    ax.yaxis.set_major_formatter(lambda error, _: f"{100 - error:g} %")


@styled
def structured_against_irregular(
    ledger: Sequence[Row], method: str = "admm", weights: str = "a few levels"
) -> str | None:
    """Top-1 of one method's runs at one kind of weights, whole rows and columns pruned against single weights, over
    storage with indices, bytes on disk and milliseconds: the point of ADMM-NN-S. None without both kinds."""
    rows = [r for r in ledger if r["compressor"] == method and r.get("weights") == weights and "pfr_unit" in r]
    kinds = {"irregular": [r for r in rows if r["pfr_unit"] == "weight"]}
    kinds["structured"] = [r for r in rows if r["pfr_unit"] != "weight"]
    if not all(kinds.values()):
        return None
    panels = (
        ("weights and their indices, bytes", lambda r, kind: r.get(f"{kind}_bytes")),
        ("file on disk, bytes", lambda r, _: r["packed_bytes"]),
        ("milliseconds, batch 1, one thread", lambda r, _: r.get("milliseconds")),
    )
    figure, places = axes(9.6, 3.4, columns=len(panels))
    for ax, (title, number) in zip(places, panels, strict=True):
        for (kind, mine), tint, mark in zip(kinds.items(), (ORANGE, BLUE), "so", strict=True):
            for row in (r for r in mine if number(r, kind) is not None):
                point = number(row, kind), 100 - row["top1"]
                ax.scatter(*point, color=tint, marker=mark, s=28, label=kind, zorder=3)
                if "pruning_rate" in row:
                    text = f"{row['pruning_rate']:.0f}×"
                    ax.annotate(text, point, (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
        _scale_errors(ax)
        ax.margins(x=0.2, y=0.15)
        ax.set_xlim(left=0)
        ax.set_xlabel(title)
    named = dict(zip(*reversed(places[0].get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=2)
    places[0].set_ylabel(f"top-1 on {DATASETS.get(rows[0]['dataset'], rows[0]['dataset'])}")
    return svg(figure)


@styled
def top1_against_pruned(ledger: Sequence[Row], targets: Sequence[Target]) -> str | None:
    """Top-1 against the pruned ratio by method and network on CIFAR-10; the paper's points hollow. None without any."""
    groups = [g for g in by_setting(r for r in ledger if r["dataset"] == "cifar10" and r["pfr"]) if g]
    papers = [t for t in targets if t.dataset == "cifar10" and {"top1", "pfr"} <= t.values.keys()]
    kinds = list(dict.fromkeys((g[0]["compressor"], g[0]["model"]) for g in groups))
    kinds += [k for k in dict.fromkeys((t.method, t.model) for t in papers) if k not in kinds]
    if not kinds:
        return None
    models = list(dict.fromkeys(model for _, model in kinds))
    figure, (ax,) = axes(9.6, 4.3)
    for method, model in kinds:
        tint, mark = color(method), MARKS[models.index(model) % len(MARKS)]
        mine = sorted((_mean(g, "pfr"), _mean(g, "top1")) for g in groups if _kind(g) == (method, model))
        theirs = [(t.values["pfr"], t.values["top1"]) for t in papers if (t.method, t.model) == (method, model)]
        if mine:
            ax.scatter(*zip(*mine, strict=True), color=tint, marker=mark, s=28, label=f"{method}, {model}", zorder=3)
        if theirs:
            label = f"{method}, {model} (paper)"
            ax.scatter(*zip(*theirs, strict=True), marker=mark, s=34, fc="none", ec=tint, label=label, zorder=2)
    ax.set_xlabel("pruned, % of the method's units")
    ax.set_ylabel("top-1 on CIFAR-10, %")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
    return svg(figure)


def _kind(rows: Sequence[Row]) -> tuple[str, str]:
    return rows[0]["compressor"], rows[0]["model"]
