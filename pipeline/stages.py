"""The road from a config to a trained, compressed network: stage after stage, each resumable to the bit."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Stage
from sparsign.compressors.pruning.weights_left import weights_left
from sparsign.pipeline import build, optim, ranks
from sparsign.pipeline.adapt import reestimate_batchnorm
from sparsign.pipeline.checkpoints import MidStageCheckpoint
from sparsign.pipeline.folder import RunFolder, load_plain, save_atomic
from sparsign.pipeline.module import StageModule, epoch_seed
from sparsign.pipeline.progress import StageBar
from sparsign.pipeline.teacher import build_teacher, check_teacher
from sparsign.pipeline.tracking import Tracker


@dataclass
class Trained:
    """What training hands over: the network in eval mode with all transforms, and how it did on the test set.

    `top1` after every stage, `logits` [N, classes] (fp32) of the last.
    """

    model: nn.Module
    compressor: Compressor
    data: pl.LightningDataModule
    folder: RunFolder
    top1: dict[str, float] = field(default_factory=dict)
    logits: Tensor | None = None


def run_stages(config: DictConfig, folder: RunFolder, tracker: Tracker, console: Console) -> Trained:
    """Runs all stages of the compressor, going on from what the run folder holds."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = build.device(config)
    if not ranks.is_main():
        ranks.barrier()  # rank 0 may have to download first
    data = build.data(config, device)
    if ranks.is_main():
        ranks.barrier()
    model = build.model(config).to(device)
    compressor = build.compressor(config)
    example = next(iter(data.test_dataloader()))[0][:1]
    compressor.prepare(model, example)
    stages = compressor.stages(model)
    check_teacher(config, folder, stages)

    run = Trained(model, compressor, data, folder)
    done = _finished(folder, stages)
    if done:
        _load_boundary(run, done)
        console.print(f"[dim]resumed after stage {done[-1].name}[/]")
    position = _mid_stage_position(folder, stages[len(done) :])
    ranks.barrier()  # all have seen the same folder
    if ranks.is_main():
        folder.drop_metrics([s.name for s in done], *position)
        for row in folder.read_metrics():
            tracker.row(row)
    for number, stage in enumerate(stages[len(done) :], start=len(done) + 1):
        started = time.perf_counter()
        try:
            _run_stage(config, run, stage, tracker, console, f"{number}/{len(stages)} {stage.name}")
        finally:
            if ranks.is_main():
                folder.add_seconds(stage.name, time.perf_counter() - started)
    if not ranks.is_main():
        return run
    if run.logits is None or device.type != "cpu":  # all was finished before, or tested elsewhere than the packed file
        model.cpu()
        run.top1[stages[-1].name] = test_top1(run)
    return run


def _finished(folder: RunFolder, stages: list[Stage]) -> list[Stage]:
    done = []
    for stage in stages:
        if not folder.boundary(stage.name).is_file():
            break
        done.append(stage)
    return done


def _load_boundary(run: Trained, done: list[Stage]) -> None:
    for stage in done[:-1]:
        run.top1[stage.name] = load_plain(run.folder.boundary(stage.name))["test_top1"]
    state = load_plain(run.folder.boundary(done[-1].name))
    run.top1[done[-1].name] = state["test_top1"]
    run.model.load_state_dict(state["model"])


def _mid_stage_position(folder: RunFolder, ahead: list[Stage]) -> tuple[str | None, int]:
    """(stage, epochs done) of the mid-stage checkpoint, when it belongs to the next stage; else (None, 0)."""
    if not ahead or not folder.mid_stage.is_file():
        return None, 0
    state = load_plain(folder.mid_stage)
    return (state["stage"], state["epoch"] + 1) if state["stage"] == ahead[0].name else (None, 0)


def _run_stage(config: DictConfig, run: Trained, stage: Stage, tracker: Tracker, console: Console, title: str) -> None:
    options = config.schedule[stage.kind]
    recipe = optim.merge(optim.suited(run.compressor.recipe(stage), run.model), options)
    if stage.kind == "pretrain" and config.model.pretrained:
        recipe = optim.replace(recipe, epochs=0)
    resumed, _ = _mid_stage_position(run.folder, [stage])
    if resumed is None:
        run.compressor.start(run.model, stage)
    if recipe.epochs:
        keeper = MidStageCheckpoint(run.folder.mid_stage, stage.name)
        bar = StageBar(title, console, shown=config.trainer.progress and ranks.is_main())

        def on_epoch(row: dict[str, Any]) -> None:
            if ranks.is_main():
                run.folder.append_metrics(row)
            tracker.row(row)
            bar.after_epoch(trainer, row)
            keeper.after_epoch(trainer)

        teacher = build_teacher(config, run.folder) if options.distill > 0 else None
        forward = torch.compile(run.model) if config.trainer.compile else None
        module = StageModule(
            run.model, run.compressor, stage, recipe, config.seed, on_epoch,
            teacher=teacher, distill=options.distill, temperature=config.schedule.temperature, forward=forward,
        )  # fmt: skip
        trainer = build.trainer(config, recipe.epochs, [keeper, bar])
        layout = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
        _lay_out(run.model.train(), layout)
        run.data.trainer = trainer  # its loaders have this rank's share
        trainer.fit(
            module,
            run.data.train_dataloader(),
            run.data.val_dataloader(),
            ckpt_path=run.folder.mid_stage if resumed else None,
            weights_only=True,
        )
        run.data.trainer = None
    if not ranks.is_main():
        ranks.barrier()
        _load_boundary(run, [stage])
        return
    if recipe.epochs and options.bn_batches:
        torch.manual_seed(epoch_seed(config.seed, stage.name, recipe.epochs))  # for dropout
        reestimate_batchnorm(run.model, run.data.train_dataloader(), options.bn_batches)
    run.compressor.finish(run.model, stage)
    _finish_stage(run, stage, recipe.epochs, tracker, console, title)
    ranks.barrier()


def _finish_stage(run: Trained, stage: Stage, epochs: int, tracker: Tracker, console: Console, title: str) -> None:
    top1 = run.top1[stage.name] = test_top1(run)
    row = {"stage": stage.name, "test_top1": top1, **weights_left(run.model), **run.compressor.metrics(run.model)}
    run.folder.append_metrics(row)
    tracker.row(row)
    state = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in run.model.state_dict().items()}
    save_atomic({"stage": stage.name, "model": state, "test_top1": top1}, run.folder.boundary(stage.name))
    run.folder.mid_stage.unlink(missing_ok=True)
    console.print(f"stage {title}: {epochs} epochs, test top-1 {100 * top1:.2f} %")
    sys.stdout.flush()


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """The memory layout of all conv weights; masks and duals keep theirs."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=layout)


@torch.no_grad()
def test_top1(run: Trained) -> float:
    """Top-1 on the test set in fp32, as a fraction; keeps the logits.

    In the memory layout of the packed network: others sum in another order, and a last bit flips a binary activation.
    """
    _lay_out(run.model.eval(), torch.contiguous_format)
    device = next(run.model.parameters()).device
    answers, truth = [], []
    for images, labels in run.data.test_dataloader():
        answers.append(run.model(images.to(device).contiguous()).cpu())
        truth.append(labels.cpu())
    run.logits = torch.cat(answers)
    return (run.logits.argmax(1) == torch.cat(truth)).double().mean().item()
