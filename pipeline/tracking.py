"""Where metrics go besides metrics.jsonl: what a tracker is told, and the one that needs nothing, a CSV file.

The others are a file each: `tracking_wandb`, `tracking_tensorboard`, `tracking_mlflow`.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from sparsign.kernels.engine import is_ours
from sparsign.packing.atomic import write_atomic


class Tracker(Protocol):
    """What the pipeline tells a tracker; of a resumed run all rows again from the first."""

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def summary(self, report: dict[str, Any], packed: Path) -> None: ...
    def close(self, failed: bool) -> None: ...


class NoTracker(Tracker):
    """Tells nobody: for all ranks but the first."""


def needed(package: str, extra: str) -> Any:
    """The optional package. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f'logger={extra} needs {package} ({error}): pip install "sparsign[{extra}]"') from error


def histograms(row: Mapping[str, Any]) -> Iterator[tuple[str, list[float], list[float]]]:
    """(name, counts, edges) of the row's histograms: a list `x_hist` beside its `x_hist_range`, equal bins."""
    for name, (low, high) in ((k.removesuffix("_range"), v) for k, v in row.items() if k.endswith("_hist_range")):
        bins = len(row[name])
        yield name, row[name], [low + (high - low) * k / bins for k in range(bins + 1)]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """The numbers and texts in nested mappings: `size/packed_bytes`."""
    flat: dict[str, float | str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float, str)):
            flat[f"{prefix}{key}"] = value
    return flat


def measured(report: Mapping[str, Any]) -> dict[str, float | str]:
    """What a report says in single numbers and texts, its latency rows under `speed/<engine>/batch<b>_threads<t>/`.

    `latency/` is the row of the smallest batch and fewest threads in which the packed network is quickest.
    """
    rows = {f"{r['engine']}/batch{r['batch']}_threads{r['threads']}": r for r in report["speed"]}
    told = leaves({k: v for k, v in report.items() if isinstance(v, Mapping)} | {"speed": rows})
    ours = [r for r in report["speed"] if is_ours(r["engine"])]
    if ours:
        told |= leaves({"latency": min(ours, key=lambda r: (r["batch"], r["threads"], r["milliseconds"]))})
    return told


def title(folder: Path, config: Mapping[str, Any], group: str | None) -> str:
    """A run's name: method, network, data set, and how the job differs from others of its sweep, else its seed."""
    dated = folder.name[:4].isdigit() and folder.name[4:5] == "-"
    own = f"seed-{config['seed']}" if dated and not group else folder.name
    return " ".join([*(config[part]["name"] for part in ("compressor", "model", "dataset")), own])


class CsvTracker:
    """metrics.csv: the rows of metrics.jsonl as a table, lists left out."""

    def __init__(self, **_: Any) -> None:
        self._rows: list[dict[str, Any]] = []

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        self._path = folder / "metrics.csv"

    def row(self, row: dict[str, Any]) -> None:
        self._rows.append({k: v for k, v in row.items() if not isinstance(v, list)})
        columns = list(dict.fromkeys(k for r in self._rows for k in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self._path, text.getvalue())

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass
