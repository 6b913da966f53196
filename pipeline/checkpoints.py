"""Checkpoints that are whole or not there, and the one that keeps a stage under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from sparsign.pipeline.folder import save_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves through a temp file and a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save_atomic(checkpoint, Path(path))


class MidStageCheckpoint(pl.Callback):
    """Keeps the stage under way in one file, with the stage's name in it, so that it can go on after a kill."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = self.stage

    def after_epoch(self, trainer: pl.Trainer) -> None:
        """Called when the row of the epoch is written; the last epoch ends in the stage's boundary checkpoint."""
        if trainer.current_epoch + 1 < trainer.max_epochs:
            trainer.save_checkpoint(self.path)
