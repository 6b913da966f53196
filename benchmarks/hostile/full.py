"""A disk that takes no more bytes (RLIMIT_FSIZE): the line that is printed."""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

from benchmarks.hostile.files import SEEDS, apart
from sparsign.packing.file import read, write


def run_full(options: argparse.Namespace) -> bool:
    """A disk that is full."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sparsign"

        def full() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
            try:
                write(read(SEEDS[0]), path)
            except OSError as error:
                return str(error)
            return "written"

        found = apart(full)["said"]
        good &= str(path) in found and "bytes" in found and not list(Path(folder).iterdir())
        print(f"file-size limit: {found}")
    return good
