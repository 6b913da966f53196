"""What is kept of a run's metrics beside the ledger: `papers/metrics/<run>.jsonl.xz`, from which plots are drawn."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from sparsign.packing.atomic import write_atomic
from sparsign.reports.curves import Row

DIGITS = 4


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_short(v) for v in value] if isinstance(value, list) else value


def keep(rows: list[Row], path: Path) -> None:
    """Rows of a metrics.jsonl, numbers cut to four significant digits."""
    text = "".join(json.dumps({k: _short(v) for k, v in row.items()}, separators=(",", ":")) + "\n" for row in rows)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, lzma.compress(text.encode(), preset=9))


def kept(path: Path) -> list[Row]:
    """The rows again. Raises ValueError, one line, for a damaged file."""
    try:
        return [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
    except (lzma.LZMAError, ValueError) as error:
        raise ValueError(f"{path}: not kept metrics ({error})") from None
