"""Where RESULTS.md, the ledger and plots are written: a folder that was asked for, or the checkout one stands in."""

from __future__ import annotations

import tomllib
from pathlib import Path


def output(asked: Path | None, option: str = "--to") -> Path:
    """The folder to write to: `asked`, or the current folder when it is a checkout of this project.

    Raises:
        ValueError: no folder asked for and the current one is no checkout, or the one asked for does not exist.
    """
    if asked is not None:
        if not asked.is_dir():
            raise ValueError(f"{option} {asked}: expected an existing folder")
        return asked
    here = Path.cwd()
    try:
        name = tomllib.loads((here / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        name = None
    if name != "sparsign" or not (here / "papers" / "ledger.jsonl").is_file():
        raise ValueError(f"{option} is needed: the current folder {here} is no checkout of sparsign")
    return here
