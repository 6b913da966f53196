"""Train, prune, quantise, pack, reload, verify and measure one network: `python train.py --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from compressors.transforms import encode_layer
from configs.schema import register
#from evaluation.report import evaluate_packed, write_report
#from evaluation.table import summary
from packing.file import write
from packing.trace import to_packed
from pipeline import build
from pipeline.cli import resume_hint, run_cli
from pipeline.folder import RunFolder
from pipeline.meta import packed_meta
from pipeline.naming import register_resolvers
from pipeline.stages import Trained, run_stages


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float:
    """Returns the packed network's top-1, so that sweepers can optimise it."""
    build.validate(config)
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode == RunMode.MULTIRUN
    folder = RunFolder(config.resume or hydra_config.runtime.output_dir)
    console = Console()
    folder.claim(build.plain(config), resume=bool(config.resume) or multirun)
    if folder.finished:
        console.print(f"{folder.path} is finished: nothing to do")
        return folder.read_report()["accuracy"]["top1"]

    tracker = instantiate(config.logger)
    failed = True
    try:
        with resume_hint(folder, console):
            tracker.open(folder.path, build.plain(config), Path(hydra_config.sweep.dir).name if multirun else None)
            report = pack_and_measure(config, run_stages(config, folder, tracker, console), console)
            tracker.summary(report, folder.packed)
            failed = False
    finally:
        tracker.close(failed)
    return report["accuracy"]["top1"]


def pack_and_measure(config: DictConfig, run: Trained, console: Console) -> dict[str, Any]:
    """Cuts and packs the trained network, then reads the file back and measures what it holds."""
    m = config.model
    packed = to_packed(run.model, encode_layer, (m.in_channels, m.image_size, m.image_size), packed_meta(config, run))
    write(packed, run.folder.packed)
    report = evaluate_packed(run.folder.packed, run.data, build.plain(config.latency))
    write_report(report, run.folder.path)
    console.print(summary(report))
    return report


if __name__ == "__main__":
    register()
    register_resolvers()
    run_cli(main)
