"""`python -m sparsign.papers COMMAND`: the papers' rows, run and told.

results     RESULTS.md anew, from the ledger and the targets beside it
reproduce   list the rows that match a name, with what they cost here; run those that are missing
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from sparsign.papers import reproduce
from sparsign.papers.acceptance import load_claims
from sparsign.papers.checkout import output
from sparsign.papers.experiments import load_experiments
from sparsign.papers.ledger import LEDGER, load_ledger
from sparsign.papers.results import render
from sparsign.papers.targets import load_targets, reported


def write_results(folder: Path, ledger: Path = LEDGER) -> Path:
    """RESULTS.md in `folder`, made from a ledger; returns its path."""
    path = folder / "RESULTS.md"
    path.write_text(render(*load_targets(), load_ledger(ledger), load_claims()), encoding="utf-8")
    return path


def run_rows(options: argparse.Namespace) -> None:
    """Lists the rows, or runs the missing ones one after the other; a row that fails does not keep the others."""
    rows = reproduce.choose(load_experiments(), options.wanted, options.dataset)
    ledger, targets = load_ledger(), load_targets()[1]
    overrides = [*options.options, *([f"dataset.root={options.root}"] if options.root else [])]
    costs = ["images/s", Column("hours", overflow="fold")] if options.forecast else []
    table = Table(Column("experiment", overflow="fold"), "the row's numbers", "state", *costs)
    failed, missing, unknown = [], [], []
    for row in rows:
        now = reproduce.state(row, ledger, options.runs)
        missing += [row] if now.startswith(("missing", "begun")) else []
        cost = []
        if options.forecast:
            try:
                told = reproduce.forecast(row, overrides)
                cost = [f"{told.images_per_s:.0f}", f"{told.hours:.1f} ({told.epochs} epochs)"]
            except ValueError as error:
                cost, unknown = ["–", str(error)], [*unknown, row.name]
        table.add_row(row.name, reported(targets[row.target]) if row.target else "–", now, *cost)
    Console(width=shutil.get_terminal_size((120, 0)).columns).print(table)
    if not options.go:
        print(f"{len(missing)} of {len(rows)} are missing; --go runs them one by one and goes on with begun ones")
        if unknown:
            raise ValueError(f"{len(unknown)} of {len(rows)} forecasts failed: {', '.join(unknown)}")
        return
    for row in missing:
        words = reproduce.command(row, options.runs, overrides)
        print("+", *words[1:], flush=True)
        failed += [row.name] if subprocess.run(words, check=False).returncode else []
    if failed:
        raise ValueError(f"{len(failed)} of {len(missing)} rows failed: {', '.join(failed)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sparsign.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    results = commands.add_parser("results", help="write RESULTS.md")
    results.add_argument("--to", type=Path, help="folder to write to; default: the checkout you are in")
    rows = commands.add_parser("reproduce", help="list, forecast and run rows of the papers")
    rows.add_argument("wanted", help="how a name or target begins, or a pattern: admm, stq_a_vgg11, '*lenet5*'")
    rows.add_argument(
        "--options", nargs="*", default=[], metavar="OPTION=VALUE", help="for train.py, e.g. cache=FOLDER"
    )
    rows.add_argument("--dataset", help="only rows on this data set")
    rows.add_argument("--root", help="folder of the data sets (dataset.root)")
    rows.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders; default: runs")
    rows.add_argument("--forecast", action="store_true", help=f"time {reproduce.STEPS} steps of each row here")
    rows.add_argument("--go", action="store_true", help="run what is missing, go on with what was begun")
    options = parser.parse_args(arguments)
    try:
        if options.command == "results":
            print(f"wrote {write_results(output(options.to))}")
        else:
            run_rows(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
