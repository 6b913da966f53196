"""The training loop of one stage: the only place that needs Lightning."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from sparsign.kernels.training import training_kernels
from sparsign.pipeline import build, ranks
from sparsign.pipeline.checkpoints import MidStageCheckpoint
from sparsign.pipeline.memory_format import lay_out
from sparsign.pipeline.module import StageModule
from sparsign.pipeline.plan import StagePlan
from sparsign.pipeline.progress import StageBar
from sparsign.pipeline.teacher import build_teacher
from sparsign.pipeline.tracking import Tracker
from sparsign.pipeline.trained import Trained


def fit(run: Trained, plan: StagePlan, tracker: Tracker, console: Console, title: str, resumed: bool) -> None:
    """Trains the stage, from its first epoch or on from the mid-stage checkpoint."""
    config, folder = run.config, run.folder
    keeper = MidStageCheckpoint(folder.mid_stage, plan.stage.name)
    bar = StageBar(title, console, shown=config.trainer.progress and ranks.is_main())

    def on_epoch(row: dict[str, Any]) -> None:
        if ranks.is_main():
            folder.append_metrics(row)
        tracker.row(row)
        bar.after_epoch(trainer, row)
        keeper.after_epoch(trainer)

    module = StageModule(
        run.model, run.compressor, plan.stage, plan.recipe, config.seed, on_epoch,
        teacher=build_teacher(config, folder) if plan.distill > 0 else None,
        distill=plan.distill,
        temperature=config.schedule.temperature,
        forward=torch.compile(run.model) if config.trainer.compile else None,
    )  # fmt: skip
    trainer = build.trainer(config, plan.recipe.epochs, [keeper, bar])
    lay_out(run.model.train(), torch.channels_last if config.trainer.channels_last else torch.contiguous_format)
    run.data.trainer = trainer  # its loaders have this rank's share
    on_cpu = build.device(config).type == "cpu"
    with training_kernels(config.trainer.kernels and on_cpu and not config.trainer.compile):
        trainer.fit(
            module,
            run.data.train_dataloader(),
            run.data.val_dataloader(),
            ckpt_path=folder.mid_stage if resumed else None,
            weights_only=True,
        )
    run.data.trainer = None
