"""Draw RESULTS.md's pictures and, from the metrics kept beside the ledger, the curves and heat maps of its runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsign.packing.atomic import write_atomic
from sparsign.papers.checkout import output
from sparsign.papers.ledger import LEDGER, load_ledger
from sparsign.papers.published import load_published
from sparsign.papers.targets import load_targets
from sparsign.reports import curves, overview
from sparsign.reports.kept import kept


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, help="folder for the pictures; default: papers/plots of your checkout")
    parser.add_argument("--runs", action="store_true", help="curves and heat maps of every run too")


def run(options: argparse.Namespace) -> None:
    folder = output(options.to) if options.to else output(None) / "papers" / "plots"
    ledger = load_ledger()
    pictures = {
        "accuracy_bytes": overview.accuracy_against_bytes(ledger, load_published()),
        "top1_pruned": overview.top1_against_pruned(ledger, list(load_targets()[1].values())),
        "structured_irregular": overview.structured_against_irregular(ledger),
    }
    for row in ledger if options.runs else []:
        path = LEDGER.parent / "metrics" / f"{row['run']}.jsonl.xz"
        if path.is_file():
            rows = kept(path)
            pictures[f"{row['run']}_curves"], pictures[f"{row['run']}_maps"] = (
                curves.curve_panels(rows),
                curves.heat_maps(rows),
            )
    drawn = {name: picture for name, picture in pictures.items() if picture}
    for name, picture in drawn.items():
        write_atomic(folder / f"{name}.svg", picture)
    print(f"drew {len(drawn)} pictures into {folder}")
