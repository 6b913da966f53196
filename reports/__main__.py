"""`python -m sparsign.reports COMMAND`: what is done with finished runs."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "record": "add a finished run to papers/ledger.jsonl",
    "compare": "write one page for any set of runs: a table and panels",
    "diff": "set two finished runs side by side",
    "wandb": "save a view of a W&B project with the panels this field compares",
    "figures": "draw the plots of RESULTS.md and of every run of the ledger",
}
"""Each is `reports/commands/<name>.py` with `arguments(parser)` and `run(options)`."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsign.reports", description=__doc__)
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = importlib.import_module(f"sparsign.reports.commands.{name}")
        own = chosen.add_parser(name, help=text, description=command.__doc__)
        command.arguments(own)
        own.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
