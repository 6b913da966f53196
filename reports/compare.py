"""One page for any set of runs: a table and the panels this field compares, from run folders, sweeps and the ledger."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from sparsign.evaluation.report import read_report
from sparsign.evaluation.report_schema import flat
from sparsign.papers.ledger import Row, load_ledger
from sparsign.papers.measured import setting
from sparsign.papers.published import load_published
from sparsign.papers.targets import load_targets
from sparsign.pipeline.folder import VOLATILE
from sparsign.reports import curves
from sparsign.reports.kept import kept
from sparsign.reports.record import speed
from sparsign.reports.sweep import short

DEEPEST = 4
"""Folders below an asked one in which reports are looked for."""

Entry = dict[str, Any]
"""One run on the page: accuracies and the pruned ratio in per cent, None where nothing is known."""


def collect(sources: Sequence[Path], page: Path) -> list[Entry]:
    """The runs of run folders, folders of runs and ledger files, in order, each once; links are relative to `page`.

    Raises:
        FileNotFoundError: a source that does not exist. ValueError: one without any finished run, or a bad ledger.
    """
    found: dict[str, Entry] = {}
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such folder or ledger")
        if source.is_file():
            mine = {f"{source}:{row['run']}": of_ledger(row, source.parent) for row in load_ledger(source)}
        else:
            mine = {str(folder.resolve()): of_folder(folder, page) for folder in run_folders(source)}
        if not mine:
            raise ValueError(f"{source}: holds no report.json of a finished run")
        found |= mine
    entries = list(found.values())
    for entry, name in zip(entries, short([entry["run"] for entry in entries]), strict=True):
        entry["run"] = name
    return entries


def run_folders(folder: Path) -> list[Path]:
    """The folder itself when it holds a readable report.json, else those below that do."""
    depths = ["report.json", *("/".join(["*"] * depth) + "/report.json" for depth in range(1, DEEPEST + 1))]
    for pattern in depths[:1], depths[1:]:
        paths = [path for depth in pattern for path in sorted(folder.glob(depth)) if _readable(path)]
        if paths:
            return [path.parent for path in paths]
    return []


def _readable(path: Path) -> bool:
    try:
        return bool(read_report(path))
    except ValueError:
        return False


def of_folder(folder: Path, page: Path) -> Entry:
    """The entry of a finished run's folder."""
    report, rows = read_report(folder / "report.json"), curves.read_metrics(folder / "metrics.jsonl")
    accuracy, size, timed = report["accuracy"], report["size"], speed(report)
    linked = folder / "report.html"
    return {
        "run": folder.resolve().name,
        "setting": _setting_of(folder),
        "link": os.path.relpath(linked, page.parent) if linked.is_file() else None,
        **{key: report[key] for key in ("compressor", "model", "dataset", "form", "seed")},
        **{key: _percent(accuracy[key]) for key in ("top1", "top5", "val_top1", "before_top1", "float_top1")},
        "pfr": _percent(report["structure"]["pfr"]),
        "unit": report["structure"]["pfr_unit"],
        "bytes": size["packed_bytes"],
        "ratio": round(size["compression_ratio"], 3),
        "ms": timed.get("milliseconds"),
        "speedup": timed.get("speedup"),
        "engine": timed.get("engine"),
        "target": None,
        "layers": [[row["name"], row["shape"][0], row["full_shape"][0]] for row in report["layers"]],
        **stage_curves(rows),
    }


def of_ledger(row: Row, papers: Path) -> Entry:
    """The entry of a row of the ledger, with its metrics where they are kept in `papers`/metrics."""
    path = papers / "metrics" / f"{row['run']}.jsonl.xz"
    return {
        "run": row["run"],
        "setting": _hash(setting(row)),
        "link": None,
        **{key: row.get(key) for key in ("compressor", "model", "dataset", "form", "seed", "top1", "top5", "val_top1")},
        "before_top1": row["top1_before"],
        "float_top1": row.get("float_top1", row["top1_before"] if row.get("form") == "float" else None),
        "pfr": row["pfr"],
        "unit": None,
        "bytes": row["packed_bytes"],
        "ratio": row["ratio"],
        "ms": row.get("milliseconds"),
        "speedup": row.get("speedup"),
        "engine": row.get("engine"),
        "target": row["target"],
        "layers": [],
        **stage_curves(kept(path) if path.is_file() else []),
    }


def stage_curves(rows: Sequence[curves.Row]) -> dict[str, Any]:
    """curves: metric -> [epoch of the run, value] pairs; stages: [first epoch, name] of every stage."""
    places = curves.positions(rows)
    found = {
        name: [[p, float(f"{row[name]:.4g}")] for p, row in zip(places, rows, strict=True) if _is_number(row.get(name))]
        for name in curves.numbers(rows)
    }
    return {"curves": found, "stages": [[places[start], stage] for start, _, stage in curves.spans(rows)]}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 3)


def _setting_of(folder: Path) -> str:
    """The same for runs that differ in nothing but the seed; the folder's name where there is no config."""
    try:
        options = flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, AttributeError):
        return str(folder)
    left_out = {"seed", *VOLATILE}
    told = {k: v for k, v in options.items() if k not in left_out and k.split(".")[0] not in left_out}
    return _hash(sorted((key, repr(value)) for key, value in told.items()))


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def papers_points(datasets: Iterable[str]) -> list[dict[str, Any]]:
    """What the papers report on these data sets: method, network, and top-1 beside the pruned ratio or the bytes."""
    names, targets = load_targets()
    points = []
    for target in targets.values():
        numbers = {**target.values, **target.inferred}
        if target.dataset in datasets and "top1" in numbers:
            point = {key: numbers.get(metric) for key, metric in (("top1", "top1"), ("pfr", "pfr"))}
            what = {"method": target.method, "model": target.model, "dataset": target.dataset, "id": target.id}
            points.append({**point, "bytes": numbers.get("packed_bytes"), **what, "paper": names[target.paper]})
    return points


def page(entries: Sequence[Entry]) -> str:
    """The whole HTML document; it needs nothing from elsewhere."""
    datasets = {entry["dataset"] for entry in entries}
    published = [vars(mark) for mark in load_published() if mark.dataset in datasets]
    data = {"runs": list(entries), "papers": papers_points(datasets), "published": published}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    here = Path(__file__).parent
    style, script, body = ((here / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    title = f"{len(entries)} run{'s' if len(entries) != 1 else ''}"
    return (
        '<!doctype html>\n<html lang=en><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)} compared</title><style>{style}</style></head>"
        f'<body>{body}<script type="application/json" id="data">{text}</script>'
        f"<script>{script}</script></body></html>\n"
    )
