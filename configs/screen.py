"""Where commands print their tables."""

from __future__ import annotations

import shutil

from rich.console import Console

ELSEWHERE = 120
"""Columns where there is no terminal to be as wide as: rich's own 80 would fold paths and cut reasons in a log."""


def screen(quiet: bool = False) -> Console:
    """A console as wide as the terminal, or as COLUMNS says."""
    return Console(quiet=quiet, width=shutil.get_terminal_size((ELSEWHERE, 0)).columns)
