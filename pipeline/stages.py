"""The road from a config to a trained, compressed network: stage after stage, each resumable to the bit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from sparsign.compressors.pruning.weights_left import weights_left
from sparsign.models.checks import check_bf16_gradients
from sparsign.models.cutting import cut, cuts
from sparsign.pipeline import build, ranks, shared
from sparsign.pipeline.adapt import reestimate_batchnorm
from sparsign.pipeline.cut import NOTHING_DEAD, check_cut, cut_network
from sparsign.pipeline.folder import RunFolder, load_plain, save_atomic
from sparsign.pipeline.leftovers import round_leftovers
from sparsign.pipeline.pack import check_layer_patterns, check_packable
from sparsign.pipeline.phases import phase
from sparsign.pipeline.plan import StagePlan, resolve
from sparsign.pipeline.seeds import epoch_seed
from sparsign.pipeline.teacher import check_teacher
from sparsign.pipeline.tracking import Tracker
from sparsign.pipeline.trained import Trained, test_top1


def prepare(config: DictConfig, folder: RunFolder, cache: Path | None = None) -> Trained:
    """Everything before the first step. What cannot work is refused here: nothing has been written or trained yet."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = build.device(config)
    if not ranks.is_main():
        ranks.barrier()  # rank 0 may have to download first
    data = build.data(config, device)
    if ranks.is_main():
        ranks.barrier()
    model = build.model(config).to(device)
    if device.type == "cpu" and build.uses_bf16(config):
        sides = {config.dataset.image_size, config.dataset.crop_size or config.dataset.image_size}
        check_bf16_gradients(model, config.dataset.channels, sides)
    compressor = build.compressor(config)
    check_layer_patterns(compressor, model)
    example = next(iter(data.test_dataloader()))[0][:1]
    compressor.prepare(model, example)
    plan = resolve(config, compressor, model)
    check_teacher(config, folder, plan)
    if not folder.started:
        check_packable(config, model)
        for stage in (s for s in plan if s.cut):
            check_cut(config, model, stage.stage.kind)
    return Trained(config, model, compressor, data, folder, plan, cache)


def run_stages(run: Trained, tracker: Tracker, console: Console) -> Trained:
    """Runs all stages of the compressor, going on from what the run folder holds."""
    done = _finished(run)
    if done:
        load_finished(run, [plan.stage.name for plan in done])
        console.print(f"[dim]resumed after stage {done[-1].stage.name}[/]")
    ahead = run.plan[len(done) :]
    under_way, epoch = _mid_stage_position(run.folder, ahead)
    ranks.barrier()  # all have seen the same folder
    if ranks.is_main():
        _take_up_metrics(run.folder, done, under_way, epoch, tracker, console)
    for plan in ahead:
        _run_or_take_stage(run, plan, tracker, console, resumed=plan.stage.name == under_way)
    if ranks.is_main() and (run.logits is None or next(run.model.parameters()).device.type != "cpu"):
        test_at_last(run, console)  # all was finished before, or tested elsewhere than the packed file
    return run


def test_at_last(run: Trained, console: Console) -> None:
    """Tests the network where the packed file is tested: on the CPU, its leftovers rounded."""
    run.model.cpu()
    if run.logits is None:
        round_leftovers(run, console)
    run.top1[list(run.top1)[-1]] = test_top1(run)


def _run_or_take_stage(run: Trained, plan: StagePlan, tracker: Tracker, console: Console, resumed: bool) -> None:
    """One stage, by training it; or from the cache, where another run has left the very same."""
    name, title = plan.stage.name, f"{run.plan.index(plan) + 1}/{len(run.plan)} {plan.stage.name}"
    with shared.entry(run, plan, console) as entry:
        if entry is not None and ranks.from_main(entry.there):
            if ranks.is_main():
                for row in entry.take(run.folder, name):
                    tracker.row(row)
                console.print(f"stage {title}: trained before, taken from {entry.checkpoint}", soft_wrap=True)
            ranks.barrier()
            load_finished(run, [plan.stage.name])
            return
        with _timed(run.folder, plan):
            _run_stage(run, plan, tracker, console, title, resumed)
        if entry is not None and ranks.is_main():
            entry.keep(run.folder, name)


def _run_stage(run: Trained, plan: StagePlan, tracker: Tracker, console: Console, title: str, resumed: bool) -> None:
    """Start, train, re-estimate, finish, test and keep; then all ranks hold what rank 0 made of it."""
    if not resumed:
        run.compressor.start(run.model, plan.stage)
    if plan.recipe.epochs:
        from sparsign.pipeline.fit import fit  # and with it Lightning, which takes seconds to import

        fit(run, plan, tracker, console, title, resumed)
    if ranks.is_main():
        with phase(console, f"{title}: BN statistics in fp32", run.config.trainer.progress):
            _reestimate(run, plan)
        run.compressor.finish(run.model, plan.stage)
        if plan.cut:
            before, after = cut_network(run.config, run.model, plan.stage.kind)
            told = f"cut from {before:,} to {after:,} parameters" if after < before else f"nothing cut: {NOTHING_DEAD}"
            console.print(f"stage {title}: {told}")
        _conclude(run, plan, tracker, console, title)
    ranks.barrier()
    if not ranks.is_main():
        load_finished(run, [plan.stage.name])


def _reestimate(run: Trained, plan: StagePlan) -> None:
    if plan.recipe.epochs and plan.bn_batches:
        torch.manual_seed(epoch_seed(run.config.seed, plan.stage.name, plan.recipe.epochs))  # for dropout
        reestimate_batchnorm(run.model, run.data.train_dataloader(), plan.bn_batches)


def _conclude(run: Trained, plan: StagePlan, tracker: Tracker, console: Console, title: str) -> None:
    """Tests what the stage made of the network, and keeps both: the row, then the checkpoint, which ends the stage."""
    name = plan.stage.name
    state = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in run.model.state_dict().items()}
    numbers = {**weights_left(run.model), **run.compressor.metrics(run.model)}
    if plan is run.plan[-1]:
        round_leftovers(run, console)  # of the network, not of the checkpoint, from which other precisions can be had
    with phase(console, f"{title}: test", run.config.trainer.progress):
        top1 = run.top1[name] = test_top1(run)
    row = {"stage": name, "test_top1": top1, **numbers}
    run.folder.append_metrics(row)
    tracker.row(row)
    content = {"stage": name, "model": state, "test_top1": top1}
    save_atomic(content | ({"cut": kept} if (kept := cuts(run.model)) else {}), run.folder.boundary(name))
    run.folder.mid_stage.unlink(missing_ok=True)
    epochs = f"{plan.recipe.epochs} epoch{'' if plan.recipe.epochs == 1 else 's'}"
    console.print(f"stage {title}: {epochs}, test top-1 {100 * top1:.2f} %")
    sys.stdout.flush()


# -- going on ----------------------------------------------------------------------------------------------------------


def _finished(run: Trained) -> list[StagePlan]:
    done = []
    for plan in run.plan:
        if not run.folder.boundary(plan.stage.name).is_file():
            break
        done.append(plan)
    return done


def load_finished(run: Trained, stages: list[str]) -> None:
    """The network as the last of these finished stages left it, and the accuracies of all of them.

    Of the others' checkpoints the weights are not needed.
    """
    for stage in stages:
        state = load_plain(run.folder.boundary(stage), "test_top1", *["model"] * (stage == stages[-1]))
        run.top1[stage] = state["test_top1"]
    cut(run.model, state.get("cut", {}), trained=False)
    run.model.load_state_dict(state["model"])


def _mid_stage_position(folder: RunFolder, ahead: list[StagePlan]) -> tuple[str | None, int]:
    """(stage, epochs done) of the mid-stage checkpoint, when it belongs to the next stage; else (None, 0)."""
    if not ahead or not folder.mid_stage.is_file():
        return None, 0
    state = load_plain(folder.mid_stage, "stage", "epoch", "state_dict")
    return (state["stage"], state["epoch"] + 1) if state["stage"] == ahead[0].stage.name else (None, 0)


def _take_up_metrics(
    folder: RunFolder, done: list[StagePlan], under_way: str | None, epoch: int, tracker: Tracker, console: Console
) -> None:
    """Forgets rows of what runs again, and tells the others to the tracker."""
    if folder.bad_metrics:
        console.print(f"warning: {folder.metrics}: {folder.bad_metrics} lines are no rows and are left out")
    folder.drop_metrics([plan.stage.name for plan in done], under_way, epoch)
    for row in folder.read_metrics():
        tracker.row(row)


@contextmanager
def _timed(folder: RunFolder, plan: StagePlan) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        if ranks.is_main():
            folder.add_seconds(plan.stage.name, time.perf_counter() - started)
