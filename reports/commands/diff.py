"""Set two finished runs side by side: what they ran with, what came out, and where the bytes went."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsign.configs.screen import screen
from sparsign.reports.diff import tables


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="folder of a finished run")
    parser.add_argument("b", type=Path, help="folder of another")


def run(options: argparse.Namespace) -> None:
    console = screen()
    for table in tables(options.a, options.b):
        console.print(table)
