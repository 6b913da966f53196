"""Event files for TensorBoard in the run folder: `tensorboard --logdir runs`."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparsign.pipeline.tracking import histograms, measured, needed


class TensorBoardTracker:
    """Rows under `<stage>/`, steps count the rows; the report's numbers under `final/`, and its texts as text."""

    def __init__(self, **_: Any) -> None:
        needed("tensorboard", "tensorboard")
        self._writer: Any = None
        self._rows = 0

    def open(self, folder: Path, config: dict[str, Any], group: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # a resumed run tells all rows again
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def row(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{row['stage']}/{key}", value, self._rows)
        for name, counts, edges in histograms(row):
            total, centres = sum(counts), [(a + b) / 2 for a, b in pairwise(edges)]
            self._writer.add_histogram_raw(
                f"{row['stage']}/{name}", edges[0], edges[-1], total,
                sum(n * x for n, x in zip(counts, centres, strict=True)),
                sum(n * x * x for n, x in zip(counts, centres, strict=True)),
                bucket_limits=edges[1:], bucket_counts=counts, global_step=self._rows,
            )  # fmt: skip
        self._rows += 1

    def summary(self, report: dict[str, Any], packed: Path) -> None:
        for key, value in measured(report).items():
            if isinstance(value, str):
                self._writer.add_text(f"final/{key}", value, self._rows)
            else:
                self._writer.add_scalar(f"final/{key}", value, self._rows)

    def close(self, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()
