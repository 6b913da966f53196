"""Many runs on one page: what each cost in accuracy and saved in bytes, and which of them no other beats.

Choices are made on held-out images: the front is one of validation accuracy; test accuracy stands beside it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from sparsign.evaluation.report import read_report
from sparsign.packing.atomic import write_atomic
from sparsign.pipeline.failures import failures
from sparsign.reports.figures import BLUE, GRID, INK, MUTED, PALE, axes, styled, svg
from sparsign.reports.html import page, section, table
from sparsign.reports.table import percent

DEPTH = 3
MARKERS = "osD^vPX*<>"


def short(labels: Sequence[str]) -> list[str]:
    """Labels without what all of them say: the parts `option-value`, joined by `__`, in which the runs differ."""
    plain = [re.sub("-[0-9a-f]{8}$", "", label) for label in labels]  # without the hash of an unusual override
    labels = plain if len(set(plain)) == len(labels) else labels
    common = set.intersection(*(set(label.split("__")) for label in labels))
    kept = [[p.removeprefix("compressor.") for p in label.split("__") if p not in common] for label in labels]
    return ["__".join(parts) or label for parts, label in zip(kept, labels, strict=True)]


@dataclass(frozen=True)
class Run:
    """One finished run: its label (folder below the sweep's) and its report."""

    label: str
    report: dict[str, Any]

    @property
    def top1(self) -> float:
        return self.report["accuracy"]["top1"]

    @property
    def val_top1(self) -> float | None:
        """None where the run held nothing out."""
        return self.report["accuracy"]["val_top1"]

    @property
    def ratio(self) -> float:
        return self.report["size"]["compression_ratio"]

    @property
    def bytes(self) -> int:
        """On disk: networks of other sizes have other ratios."""
        return self.report["size"]["packed_bytes"]


def find_runs(folder: Path) -> list[Run]:
    """Every readable report.json at most three folders below; unreadable ones are left out."""
    runs = []
    for depth in range(1, DEPTH + 1):
        for path in sorted(folder.glob("/".join(["*"] * depth) + "/report.json")):
            try:
                runs.append(Run(str(path.parent.relative_to(folder)), read_report(path)))
            except ValueError:
                continue
    return runs


def pareto(runs: Sequence[Run]) -> list[Run]:
    """Runs that no other run beats: none is at least as good in held-out top-1 and bytes on disk and better in one.

    Empty where a run held nothing out: nothing may be chosen by test accuracy.
    """
    if any(run.val_top1 is None for run in runs):
        return []

    def beaten(run: Run) -> bool:
        as_good = (r for r in runs if r.val_top1 >= run.val_top1 and r.bytes <= run.bytes)
        return any(r.val_top1 > run.val_top1 or r.bytes < run.bytes for r in as_good)

    return sorted((run for run in runs if not beaten(run)), key=lambda run: -run.bytes)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One flat row per run, for the table and summary.csv; accuracies and ratios of structure are fractions."""
    front = {run.label for run in pareto(runs)}
    return [
        {
            "run": run.label,
            "compressor": run.report["compressor"],
            "model": run.report["model"],
            "dataset": run.report["dataset"],
            "seed": run.report["seed"],
            "float_top1": run.report["accuracy"]["float_top1"],
            "before_top1": run.report["accuracy"]["before_top1"],
            "val_top1": run.val_top1,
            "top1": run.top1,
            "pfr_asked": run.report["structure"]["pfr_asked"],
            "pfr": run.report["structure"]["pfr"],
            "pfr_unit": run.report["structure"]["pfr_unit"],
            "parameters": run.report["size"]["parameters"],
            "packed_bytes": run.report["size"]["packed_bytes"],
            "compression_ratio": run.ratio,
            "identical_predictions": run.report["reload"]["identical_predictions"],
            "pareto": run.label in front,
        }
        for run in runs
    ]


HEAD = ["Run", "Before", "Held-out", "Test", "Pruned", "Bytes", "Ratio", "Reload", "Front"]


def _cells(row: dict[str, Any]) -> list[str]:
    """What `HEAD` names, but for the run itself."""
    reload = {True: "same", False: "DIFFERS", None: "–"}[row["identical_predictions"]]
    numbers = [percent(row[name]) for name in ("before_top1", "val_top1", "top1", "pfr")]
    numbers.append(f"{row['packed_bytes']:,}")
    return [*numbers, f"{row['compression_ratio']:.1f}", reload, "●" if row["pareto"] else ""]


@styled
def pareto_figure(runs: Sequence[Run]) -> Figure:
    """Held-out top-1 against bytes on disk, a marker per run, the Pareto front joined; test top-1 without a front
    where nothing was held out."""
    figure, (ax,) = axes(7.6, 4.4)
    front, names = pareto(runs), short([run.label for run in runs])
    height = {run.label: 100 * (run.val_top1 if front else run.top1) for run in runs}
    ax.plot([r.bytes for r in front], [height[r.label] for r in front], color=BLUE, linewidth=1.4, zorder=2)
    kinds = list(dict.fromkeys(run.report["compressor"] for run in runs))
    for run, name in zip(runs, names, strict=True):
        best = run in front
        marker = MARKERS[kinds.index(run.report["compressor"]) % len(MARKERS)]
        ax.scatter(run.bytes, height[run.label], s=42, marker=marker, color=BLUE if best else PALE, zorder=3)
        text = name if len(name) <= 40 else f"{name[:39]}…"
        place, color = (6, 5), (INK if best else MUTED)
        ax.annotate(text, (run.bytes, height[run.label]), place, textcoords="offset points", fontsize=7.5, color=color)
    if len(kinds) > 1:
        for k, kind in enumerate(kinds):
            ax.scatter([], [], s=42, marker=MARKERS[k % len(MARKERS)], color=MUTED, label=kind)
        ax.legend(loc="lower left")
    sizes = [run.bytes for run in runs]
    if max(sizes) > 20 * min(sizes):  # networks of very different sizes
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("bytes on disk")
    ax.set_ylabel("top-1 on held-out images, %" if front else "top-1 on test images, %")
    ax.margins(x=0.18, y=0.15)
    ax.grid(color=GRID)
    return figure


def summarise(sweep_dir: str | Path) -> Table | None:
    """Write summary.csv, sweep.html and, where a run is finished, pareto.png into the sweep's folder.

    Jobs that failed are listed with their reasons. Returns the table of the finished runs, None where there are none.
    """
    folder = Path(sweep_dir)
    runs, failed = find_runs(folder), failures(folder)
    if not runs and not failed:
        return None
    found = rows(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*(found[0] if found else ["run"]), "failed"], lineterminator="\n")
    writer.writeheader()
    writer.writerows([*found, *({"run": label, "failed": reason} for label, reason in failed.items())])
    write_atomic(folder / "summary.csv", text.getvalue())
    pages = _failed(failed)
    if runs:
        figure, picture = pareto_figure(runs), io.BytesIO()
        figure.savefig(picture, format="png", dpi=160, bbox_inches="tight")
        write_atomic(folder / "pareto.png", picture.getvalue())
        pages = _finished(svg(figure), found) + pages
    told = f"{len(found)} finished runs" + (f", {len(failed)} failed" if failed else "")
    write_atomic(folder / "sweep.html", page(f"Sweep {folder.name}", pages, told))
    return _table(folder, found) if found else None


def _failed(failed: Mapping[str, str]) -> str:
    lines = [list(job) for job in failed.items()]
    return section("Failed", table(["Run", "Reason"], lines, text_columns=2)) if failed else ""


def _finished(picture: str, found: Sequence[dict[str, Any]]) -> str:
    text = "Before: unpruned, of the same form. Ratio: fp32 bytes of the uncut network / bytes on disk."
    names = short([row["run"] for row in found])
    lines = [[name, *_cells(row)] for name, row in zip(names, found, strict=True)]
    runs = section("Runs", table(HEAD, lines), text)
    text = "Blue runs are on the Pareto front: no other is both smaller and more accurate on held-out images."
    if not any(row["pareto"] for row in found):
        text = "No front: a run held no images out, and nothing is chosen by test accuracy."
    body = section("Accuracy against size", picture, text)
    return body + runs


def _table(folder: Path, found: Sequence[dict[str, Any]]) -> Table:
    style = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # leaves the names their place
    result = Table(title=f"Sweep {folder}", title_justify="left", **style)
    for k, name in enumerate(HEAD):
        result.add_column(name, justify="right" if 1 <= k <= 6 else "left", no_wrap=k > 0, overflow="fold")
    for name, row in zip(short([row["run"] for row in found]), found, strict=True):
        result.add_row(name, *_cells(row), style=None if row["pareto"] else "dim")
    return result
