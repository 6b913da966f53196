"""`python -m sparsign.papers results`: RESULTS.md anew, from the ledger and the targets beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparsign.papers.acceptance import load_claims
from sparsign.papers.checkout import output
from sparsign.papers.ledger import LEDGER, load_ledger
from sparsign.papers.results import render
from sparsign.papers.targets import load_targets


def write_results(folder: Path, ledger: Path = LEDGER) -> Path:
    """RESULTS.md in `folder`, made from a ledger; returns its path."""
    path = folder / "RESULTS.md"
    path.write_text(render(*load_targets(), load_ledger(ledger), load_claims()), encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsign.papers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    results = commands.add_parser("results", help="write RESULTS.md")
    results.add_argument("--to", type=Path, help="folder to write to; default: the checkout you are in")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {write_results(output(options.to))}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
