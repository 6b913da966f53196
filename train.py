"""Train, prune, quantise, pack, reload, verify and measure one network: `python train.py --help`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from sparsign.compressors import registry
from sparsign.configs import schema
from sparsign.configs.screen import screen
from sparsign.pipeline import build, objective, origin, plugins, ranks
from sparsign.pipeline.cli import fails_in_one_line, resume_hint, run_cli
from sparsign.pipeline.failures import goes_on
from sparsign.pipeline.folder import RunFolder
from sparsign.pipeline.naming import names_of_jobs, near, no_empty_folders, register_resolvers
from sparsign.pipeline.phases import phase
from sparsign.pipeline.plan import without_effect
from sparsign.pipeline.stages import prepare, run_stages
from sparsign.pipeline.tracking import NoTracker
from sparsign.pipeline.trained import Trained


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
@fails_in_one_line
def main(config: DictConfig) -> float | tuple[float, ...] | None:
    """Returns what `objective=` names, for sweepers to optimise; None for a sweep's job that failed."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        sweep = Path(hydra_config.sweep.dir)
        return goes_on(lambda: objective.told(config, run(config, near(folder), sweep)), folder)
    with no_empty_folders(folder):
        return objective.told(config, run(config, near(config.resume or folder)))


def run(config: DictConfig, path: str | Path, sweep: Path | None = None) -> dict[str, Any] | None:
    """One job in its run folder: goes on with what is there, or starts; returns the report (None: not rank 0).

    A folder with this very run in it is only entered to resume it or, in a sweep, to skip or finish it.

    Args:
        sweep: the folder of the sweep that the job is of.
    """
    plugins.register()  # again in a process that a launcher has started
    build.validate(config)
    if sweep is not None and ranks.size() > 1:
        raise ValueError(f"-m: a sweep runs in one process, not in {ranks.size()}; expected one job per torchrun")
    ranks.start(config.trainer.devices, build.device(config))
    folder, console = RunFolder(ranks.from_main(path)), screen(quiet=not ranks.is_main())
    if config.resume and not folder.path.is_dir():
        raise ValueError(f"resume={config.resume}: there is no such folder")
    with folder.locked() if ranks.is_main() else nullcontext():
        resume = bool(config.resume) or (sweep is not None and folder.started)
        if ranks.is_main():
            folder.check(build.plain(config), resume)
        ranks.barrier()
        if folder.finished:
            console.print(f"{folder.path} is finished: nothing to do", soft_wrap=True)
            return _finished(folder)
        return _run(config, folder, resume, sweep, console)


def _finished(folder: RunFolder) -> dict[str, Any]:
    from sparsign.evaluation.report import read_report

    return proved(read_report(folder.report))


def _run(
    config: DictConfig, folder: RunFolder, resume: bool, sweep: Path | None, console: Console
) -> dict[str, Any] | None:
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    tracker = instantiate(config.logger) if ranks.is_main() else NoTracker()
    failed = True
    try:
        with resume_hint(folder, console):
            beside = _float_beside(config)
            trained = prepare(config, folder, _cache(config, sweep))
            objective.check_held_out(config, trained.data)
            for word in without_effect(_words(), trained.compressor, trained.plan):
                console.print(f"warning: {word}", soft_wrap=True)
            stages, options = [plan.told for plan in trained.plan], build.plain(config)
            if ranks.is_main():
                folder.claim(options, resume)
                if warning := folder.record(stages, origin.code_of(config)):
                    console.print(f"warning: {warning}", soft_wrap=True)
            group = sweep.name if sweep else None
            tracker.open(folder.path, options | {"stages": stages, "code": origin.code_of(config)}, group)
            run_stages(trained, tracker, console)
            ranks.stop()
            if not ranks.is_main():
                return None
            report = pack_and_measure(trained, console, beside)
            tracker.summary(report, folder.packed)
            failed = False
    finally:
        tracker.close(failed)
    return proved(report)


def _words() -> list[str]:
    """The options on the command line; none where a run was not started from one."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _cache(config: DictConfig, sweep: Path | None) -> Path | None:
    """Where runs share their pretrain stages: `cache=<folder>`, else in the sweep's folder; None for a run alone."""
    return Path(config.cache) if config.cache else sweep and sweep / "pretrain"


def _float_beside(config: DictConfig) -> float | None:
    """Top-1 of the float network of `baseline=<run>`, read before anything is trained."""
    if config.baseline is None:
        return None
    from sparsign.evaluation.baseline import float_accuracy

    return float_accuracy(config.baseline, config.model.name, config.dataset.name)


def pack_and_measure(trained: Trained, console: Console, float_top1: float | None = None) -> dict[str, Any]:
    """Cuts and packs the trained network, then reads the file back and measures what it holds."""
    from sparsign.evaluation.repack import write_trained
    from sparsign.evaluation.report import evaluate_packed
    from sparsign.packing.file import read
    from sparsign.packing.limits import OWN
    from sparsign.reports.files import write_report
    from sparsign.reports.table import summary

    folder, shown = trained.folder, trained.config.trainer.progress
    with phase(console, "packing", shown):
        write_trained(trained, folder.packed, float_top1)
    with phase(console, "reading the file back, testing and timing it", shown):
        batches, packed = trained.data.test_dataloader(), read(folder.packed, OWN)
        report = evaluate_packed(folder.packed, batches, build.plain(trained.config.latency), packed=packed)
    write_report(report, folder.path)
    console.print(summary(report, folder.path))
    return report


def proved(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a file that answers as the trained network did. Raises ValueError for another."""
    if report["reload"]["identical_predictions"] is False:
        raise ValueError(f"{report['packed']}: the packed file's predictions are DIFFERENT from the trained network's")
    return report


def command() -> None:
    """`sparsign-train`: the same as `python train.py`."""
    schema.register()
    registry.register()
    register_resolvers()
    sys.argv[1:] += names_of_jobs(sys.argv[1:])
    run_cli(main, "train")


if __name__ == "__main__":
    command()
