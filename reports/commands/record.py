"""Put a finished run into the ledger, its metrics beside it, and write RESULTS.md anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsign.papers import ledger
from sparsign.papers.__main__ import write_results
from sparsign.papers.checkout import output
from sparsign.reports.curves import read_metrics
from sparsign.reports.kept import keep
from sparsign.reports.record import last_numbers, ledger_row, read_run


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a finished run")
    parser.add_argument("--command", dest="typed", required=True, help="the exact command that made it")
    parser.add_argument("--name", help="the run's name in the ledger; default: the folder's")
    parser.add_argument("--target", help="id in papers/targets.yaml of the row it is to be compared with")
    parser.add_argument("--target-stage", help="stage to compare with the target, where not the packed file")
    parser.add_argument("--hardware", help="what it was trained on; default: the processor that measured it")
    parser.add_argument("--note", help="a remark for the table")
    parser.add_argument("--to", type=Path, help="checkout whose ledger it goes into; default: the one you are in")


def run(options: argparse.Namespace) -> None:
    root = output(options.to)
    metrics = read_metrics(options.folder / "metrics.jsonl")
    row = {"run": options.name or options.folder.resolve().name}
    row |= ledger_row(*read_run(options.folder), options.typed, last_numbers(metrics))
    row |= {"target": options.target}
    for key in ("target_stage", "hardware", "note"):
        if getattr(options, key):
            row[key] = getattr(options, key)
    ledger.append(row, root / "papers" / "ledger.jsonl")
    keep(metrics, root / "papers" / "metrics" / f"{row['run']}.jsonl.xz")
    print(f"added {row['run']} to the ledger; {write_results(root, root / 'papers' / 'ledger.jsonl')} is up to date")
