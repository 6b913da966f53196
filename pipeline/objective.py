"""`objective=`: what a sweeper is told of a job, asked for before training and looked up in the report after it."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sparsign.configs.schema import OBJECTIVES
from sparsign.datamodules.base import ImageData
from sparsign.pipeline.tracking import measured

METRICS = {"val_top1": "accuracy/val_top1", "bytes": "size/packed_bytes", "milliseconds": "latency/milliseconds"}


def check(config: DictConfig) -> None:
    """Raises ValueError for a name that is not known, or whose value would not be measured."""
    if not config.objective:
        raise ValueError(f"objective=[]: expected at least one of {' | '.join(OBJECTIVES)}")
    for name in config.objective:
        if name not in OBJECTIVES:
            raise ValueError(f"objective={name}: expected a value in {' | '.join(OBJECTIVES)}")
    if "milliseconds" in config.objective and config.latency.seconds == 0:
        raise ValueError("objective=milliseconds: nothing is timed; expected latency.seconds above 0")


def check_held_out(config: DictConfig, data: ImageData) -> None:
    """Raises ValueError where a search for the best on held-out images has none. A run alone needs none."""
    hydra_config = HydraConfig.get() if HydraConfig.initialized() else None
    searches = hydra_config is not None and hydra_config.mode == RunMode.MULTIRUN
    searches = searches and not hydra_config.sweeper._target_.endswith("BasicSweeper")
    asked = "val_top1" in config.objective and (searches or len(config.objective) > 1)
    if asked and next(iter(data.val_dataloader()), None) is None:
        raise ValueError("objective=val_top1: no images are held out; expected dataset.val_fraction above 0")


def told(config: DictConfig, report: dict[str, Any] | None) -> float | tuple[float, ...] | None:
    """One value or several, in the order of `objective=`. None on another rank than 0.

    Raises:
        ValueError: something that the run does not have.
    """
    if report is None:
        return None
    found = measured(report)
    values = tuple(found.get(METRICS[name]) for name in config.objective)
    if list(config.objective) != ["val_top1"] and None in values:
        missing = f"objective={config.objective[values.index(None)]}: this run has none"
        raise ValueError(f"{missing}; expected dataset.val_fraction and latency.seconds above 0")
    return values if len(values) > 1 else values[0]
