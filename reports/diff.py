"""Two finished runs side by side: options and code where they differ, accuracy, bytes by layer, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.table import Table

from sparsign.evaluation.report import read_report
from sparsign.evaluation.report_schema import flat
from sparsign.pipeline.folder import read_mapping
from sparsign.reports.record import code_of, speed

MISSING = "–"


def tables(a: Path, b: Path) -> list[Table]:
    """What differs, what came out, the layers.

    Raises:
        ValueError, FileNotFoundError: one line, for a folder without a finished run.
    """
    reports = [read_report(folder / "report.json") for folder in (a, b)]
    names = a.resolve().name, b.resolve().name
    names = names if names[0] != names[1] else (str(a), str(b))
    return [_ran(a, b, reports, names), _results(reports, names), _layers(reports, names)]


def _ran(a: Path, b: Path, reports: list[dict[str, Any]], names: tuple[str, str]) -> Table:
    table = Table("ran with", *names, title="what differs")
    options = [flat(read_mapping(folder / "config.yaml")) for folder in (a, b)]
    stages = [{stage["name"]: stage for stage in report["recipe"] or []} for report in reports]
    recipes = [{f"{name}: {key}": v for name, s in mine.items() for key, v in s.items()} for mine in stages]
    codes = [code_of(report["code"]) for report in reports]
    versions = [{"commit": code.get("commit")} | code.get("versions", {}) for code in codes]
    for mine, theirs in (options, recipes, versions):
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                table.add_row(key, *(MISSING if side.get(key) is None else str(side[key]) for side in (mine, theirs)))
    return table


def _results(reports: list[dict[str, Any]], names: tuple[str, str]) -> Table:
    table = Table("result", *names, "difference", title="what came out")
    points: Callable[[float], str] = lambda v: f"{100 * v:.2f}"  # noqa: E731
    rows: list[tuple[str, list[float | None], Callable[[float], str]]] = [
        (f"{name}, %", [report["accuracy"][key] for report in reports], points)
        for name, key in (("top-1", "top1"), ("top-1 held out", "val_top1"), ("top-1 before", "before_top1"))
    ]
    rows += [
        ("pruned, %", [report["structure"]["pfr"] for report in reports], points),
        ("bytes", [report["size"]["packed_bytes"] for report in reports], lambda v: f"{v:,.0f}"),
        ("times smaller", [report["size"]["compression_ratio"] for report in reports], lambda v: f"{v:.2f}"),
        ("milliseconds", [speed(report).get("milliseconds") for report in reports], lambda v: f"{v:.3f}"),
    ]
    for name, (one, other), text in rows:
        if one is not None or other is not None:
            change = MISSING if one is None or other is None else ("+" if other > one else "") + text(other - one)
            table.add_row(name, *(MISSING if v is None else text(v) for v in (one, other)), change)
    return table


def _layers(reports: list[dict[str, Any]], names: tuple[str, str]) -> Table:
    heads = [f"{what} {name}" for what in ("shape", "bytes") for name in names]
    table = Table("layer", *heads, "difference", title="bytes by layer")
    layers = [{row["name"]: row for row in report["layers"]} for report in reports]
    order = dict.fromkeys(n for pair in zip_longest(*layers) for n in pair if n)
    for name in order:
        pair = [mine.get(name) for mine in layers]
        shapes = [MISSING if row is None else "×".join(map(str, row["shape"])) for row in pair]
        counts = [None if row is None else row["packed_bytes"] for row in pair]
        change = MISSING if None in counts else f"{counts[1] - counts[0]:+,}"
        table.add_row(name, *shapes, *(MISSING if c is None else f"{c:,}" for c in counts), change)
    return table
