"""A report as files of the folder it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsign.packing.atomic import write_atomic
from sparsign.reports.curves import read_metrics
from sparsign.reports.html import render


def write_report(report: dict[str, Any], folder: str | Path) -> None:
    """report.html, with curves where the folder holds metrics.jsonl, then report.json: whole or not at all each."""
    folder = Path(folder)
    write_atomic(folder / "report.html", render(report, read_metrics(folder / "metrics.jsonl")))
    write_atomic(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
