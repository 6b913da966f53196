"""One live bar per stage: epochs and steps, loss, accuracy, time left."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageBar(pl.Callback):
    """A rich bar over all steps of a stage. On a terminal it is live; in a log it prints one line per epoch."""

    def __init__(self, title: str, console: Console, shown: bool = True) -> None:
        self.title, self.console, self.shown = title, console, shown
        self.live = shown and console.is_terminal
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.text = ""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.global_step
        total = int(trainer.estimated_stepping_batches)
        self.task = self.progress.add_task(self.title, total=total, completed=done, state="")
        if self.live:
            self.progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.live:
            loss = trainer.callback_metrics.get("loss")
            state = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} " + (f"loss {loss:.3f}" if loss else "")
            self.progress.update(self.task, completed=trainer.global_step, state=state + self.text)

    def after_epoch(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        """Shows the accuracies of the epoch that just ended."""
        self.text = f" train {100 * row['train_top1']:.1f} %"
        if "val_top1" in row:
            self.text += f" val {100 * row['val_top1']:.1f} %"
        if self.shown and not self.live:
            self.console.print(
                f"{self.title} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                f" loss {row['train_loss']:.3f}{self.text} {row['images_per_s']:.0f} images/s"
            )

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.live:
            self.progress.stop()
