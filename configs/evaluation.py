"""Typed schema of evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from sparsign.configs.help import register_help
from sparsign.configs.options import option
from sparsign.configs.schema import PRECISIONS, LatencyConfig


@dataclass
class TestDataConfig:
    """Where the test images lie; which data set they are of is in the packed file."""

    root: str | None = option(None, "folder with the data set's files; null = what the run's config.yaml says")
    download: bool = option(False, "fetch missing files through torchvision")
    limit: int | None = option(None, "use only that many test images", ge=1)
    workers: int = option(0, "decoding processes, for data sets of image files; at most one a processor", ge=0)


@dataclass
class LimitsConfig:
    """What a packed file may ask for, in millions of bytes, before it is refused; null = by its size (FORMAT.md)."""

    header_mb: float | None = option(None, "most MB of its header", gt=0)
    decoded_mb: float | None = option(None, "most MB of its arrays when decoded", gt=0)
    activation_mb: float | None = option(None, "most MB of activations at batch 256", gt=0)


@dataclass
class EvaluateConfig:
    """The whole of `python evaluate.py`."""

    run: str | None = option(None, "run folder: its model.sparsign is measured")
    packed: str | None = option(None, "or the packed file itself")
    repack: bool = option(False, "pack the run again with today's code, from the checkpoint of its last stage")
    leftovers: str | None = option(
        None, "with repack: what stays float is rounded to it; null = as the run had it", choices=PRECISIONS
    )
    output: str | None = option(None, "folder for report.json and report.html; null = beside the packed file")
    dataset: TestDataConfig = field(default_factory=TestDataConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


def register() -> None:
    """Put the schema into the ConfigStore."""
    register_help()
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
