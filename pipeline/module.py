"""One Lightning module for every stage of every method: cross-entropy, the compressor's hooks, an epoch's metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.pipeline import optim, ranks
from sparsign.pipeline.seeds import epoch_seed

FAR, PATIENCE = 20, 3
"""An epoch whose loss is above FAR log(classes) is far above chance; PATIENCE of them in a row are divergence."""


class StageModule(pl.LightningModule):
    """The network in one stage.

    Args:
        net: network with the compressor's transforms attached.
        distill: weight of the distillation loss; the teacher gives logits for the same images.
        on_epoch: receives the row of metrics at the end of every epoch.
    """

    def __init__(
        self,
        net: nn.Module,
        compressor: Compressor,
        stage: Stage,
        recipe: Recipe,
        seed: int,
        on_epoch: Callable[[dict[str, Any]], None],
        teacher: nn.Module | None = None,
        distill: float = 0.0,
        temperature: float = 4.0,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.compressor, self.stage, self.recipe, self.seed = net, compressor, stage, recipe, seed
        self.classes = self._far_epochs = 0
        self.on_epoch, self.distill, self.temperature = on_epoch, distill, temperature
        # Held outside the module tree: neither belongs into the checkpoint.
        object.__setattr__(self, "teacher", teacher)
        object.__setattr__(self, "forward_net", net if forward is None else forward)  # a compiled one has no truth

    def setup(self, stage: str) -> None:
        """Freezes what this stage does not train, before DDP takes stock of the gradients to share."""
        trained = {id(p) for g in self.compressor.parameters(self.net, self.stage) for p in g["params"]}
        for p in self.net.parameters():
            p.requires_grad_(id(p) in trained)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optim.optimizer(self.recipe, self.compressor.parameters(self.net, self.stage))
        steps = self.trainer.estimated_stepping_batches // max(1, self.recipe.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.lr_factor(self.recipe, steps, self.recipe.epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(epoch_seed(self.seed, self.stage.name, self.current_epoch))
        self.compressor.before_epoch(self.net, self.stage, self.current_epoch, self.recipe.epochs)
        self._started, self._images = time.perf_counter(), 0
        self._sums = torch.zeros(3, device=self.device)
        self._val = torch.zeros(2, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self.forward_net(images)
        self.classes = logits.shape[1]
        loss, penalty = self.compressor.loss(self.net, self.stage, batch, logits, partial(self._task, batch))
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            extra = torch.zeros_like(loss) if penalty is None else penalty
            self._sums += torch.stack([loss * len(labels), extra * len(labels), correct]).float()
            self._images += len(labels)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss if penalty is None else loss + penalty

    def _task(self, batch: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        """Cross-entropy of logits for the batch, mixed with the distillation loss where the stage has a teacher."""
        images, labels = batch
        loss = nn.functional.cross_entropy(logits, labels)
        if self.teacher is not None and self.distill > 0:
            loss = (1 - self.distill) * loss + self.distill * self._distillation(images, logits)
        return loss

    def _distillation(self, images: Tensor, logits: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of softened logits (Hinton et al., 2015)."""
        with torch.no_grad():
            target = (self.teacher(images) / self.temperature).log_softmax(1)
        student = (logits / self.temperature).log_softmax(1)
        return self.temperature**2 * nn.functional.kl_div(student, target, reduction="batchmean", log_target=True)

    def _check_loss(self, loss: float) -> None:
        """Stops a stage that diverges, before its checkpoint is overwritten: what was there before is kept."""
        chance = math.log(self.classes) if self.classes else math.inf
        self._far_epochs = self._far_epochs + 1 if loss > FAR * chance else 0
        if not math.isfinite(loss) or self._far_epochs >= PATIENCE:
            raise ValueError(
                f"stage {self.stage.name} diverged in epoch {self.current_epoch + 1}: its loss is {loss:.3g} "
                f"(chance: {chance:.3g}); expected a smaller schedule.{self.stage.kind}.lr (now {self.recipe.lr:g}) "
                f"or schedule.{self.stage.kind}.clip=1 to help"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]  # at an epoch's end it is the next step's already
        self.compressor.before_step(self.net, self.stage)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.compressor.after_step(self.net, self.stage)

    def on_validation_epoch_start(self) -> None:
        self._train_seconds = time.perf_counter() - self._started

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        correct = (self.forward_net(images).argmax(1) == labels).sum()
        self._val += torch.stack([correct, torch.as_tensor(len(labels), device=correct.device)])

    def on_train_epoch_end(self) -> None:
        seconds = getattr(self, "_train_seconds", None) or time.perf_counter() - self._started
        self._train_seconds = None
        n = max(1, self._images * ranks.size())  # every rank has equally many
        loss, penalty, correct = (ranks.total(self._sums) / n).tolist()
        self._check_loss(loss)
        row = {
            "stage": self.stage.name,
            "epoch": self.current_epoch,
            "train_loss": loss,
            "train_top1": correct,
            "penalty": penalty,
            "lr": self._lr,
            "images_per_s": round(n / seconds, 1),
        }
        right, total = ranks.total(self._val).tolist()
        if total:
            row["val_top1"] = right / total
        self.on_epoch(row | self.compressor.metrics(self.net))
