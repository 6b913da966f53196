"""Write one page for any set of runs: a table and the panels this field compares, each point linked to its report."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsign.packing.atomic import write_atomic
from sparsign.reports.compare import collect, page


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, nargs="+", help="run folders, folders of runs (sweeps), ledger.jsonl files"
    )
    parser.add_argument("--to", type=Path, default=Path("compare.html"), help="the page; default: compare.html here")


def run(options: argparse.Namespace) -> None:
    if not options.to.parent.is_dir() or options.to.is_dir():
        raise ValueError(f"--to {options.to}: expected the name of a file in an existing folder")
    entries = collect(options.source, options.to)
    write_atomic(options.to, page(entries))
    print(f"{options.to}: {len(entries)} runs")
