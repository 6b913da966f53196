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

from sparsign.compressors import registry
from sparsign.compressors.parts.transforms import encode_layer
from sparsign.configs import schema
from sparsign.evaluation import proof
from sparsign.evaluation.baseline import float_accuracy
from sparsign.evaluation.report import evaluate_packed, read_report
from sparsign.packing.file import write
from sparsign.packing.trace import to_packed
from sparsign.pipeline import build, ranks
from sparsign.pipeline.cli import fails_in_one_line, resume_hint, run_cli
from sparsign.pipeline.folder import RunFolder
from sparsign.pipeline.meta import packed_meta
from sparsign.pipeline.naming import register_resolvers
from sparsign.pipeline.stages import Trained, run_stages
from sparsign.pipeline.tracking import NoTracker
from sparsign.reports.files import write_report
from sparsign.reports.table import near, summary


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
@fails_in_one_line
def main(config: DictConfig) -> float | None:
    """Returns the last top-1 on held-out images, for sweepers to optimise; None where nothing is held out."""
    hydra_config = HydraConfig.get()
    sweep = Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else None
    report = run(config, near(config.resume or hydra_config.runtime.output_dir), sweep)
    return report["accuracy"]["val_top1"] if report else None


def run(config: DictConfig, path: str | Path, sweep: str | None = None) -> dict[str, Any] | None:
    """One job in its run folder: goes on with what is there, or starts; returns the report (None: not rank 0).

    A folder with this very run in it is only entered to resume it or, in a sweep, to skip or finish it.
    """
    build.validate(config)
    beside = float_accuracy(config.baseline, config.model.name, config.dataset.name) if config.baseline else None
    if sweep is not None and ranks.size() > 1:
        raise ValueError(f"-m: a sweep runs in one process, not in {ranks.size()}; expected one job per torchrun")
    ranks.start(config.trainer.devices, build.device(config))
    folder, console = RunFolder(ranks.from_main(path)), Console(quiet=not ranks.is_main())
    tracker = instantiate(config.logger) if ranks.is_main() else NoTracker()
    if ranks.is_main():
        folder.claim(build.plain(config), resume=bool(config.resume) or (sweep is not None and folder.started))
    ranks.barrier()
    if folder.finished:
        console.print(f"{folder.path} is finished: nothing to do", soft_wrap=True)
        return read_report(folder.report)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    failed = True
    try:
        with resume_hint(folder, console):
            tracker.open(folder.path, build.plain(config), sweep)
            trained = run_stages(config, folder, tracker, console)
            ranks.stop()
            if not ranks.is_main():
                return None
            report = pack_and_measure(config, trained, console, beside)
            tracker.summary(report, folder.packed)
            failed = False
    finally:
        tracker.close(failed)
    return report


def pack_and_measure(
    config: DictConfig, trained: Trained, console: Console, float_top1: float | None = None
) -> dict[str, Any]:
    """Cuts and packs the trained network, then reads the file back and measures what it holds; `float_top1`: of the
    float network that the run is set beside."""
    folder, data, m = trained.folder, trained.data, config.model
    meta = packed_meta(config, trained) | {"proof": proof.make(trained.logits)}
    if float_top1 is not None:
        meta["accuracy"]["float_top1"] = float_top1
    write(to_packed(trained.model, encode_layer, (m.in_channels, m.image_size, m.image_size), meta), folder.packed)

    report = evaluate_packed(folder.packed, data.test_dataloader(), build.plain(config.latency))
    write_report(report, folder.path)
    console.print(summary(report, folder.path))
    return report


def command() -> None:
    """`sparsign-train`: the same as `python train.py`."""
    schema.register()
    registry.register()
    register_resolvers()
    run_cli(main)


if __name__ == "__main__":
    command()
