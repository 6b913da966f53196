"""What Hydra calls when a multirun is over."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparsign.configs.screen import screen


class SweepSummary(Callback):
    """One table of all finished runs of the sweep, and its files in the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from sparsign.reports.sweep import summarise  # and with it matplotlib: not for a single run or --help

        table = summarise(config.hydra.sweep.dir)
        if table is not None:
            screen().print(table)
