"""A run's objects on their way through the stages, and the test of what they have become."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sparsign.compressors.base import Compressor
from sparsign.datamodules.base import Batches, ImageData
from sparsign.pipeline.folder import RunFolder
from sparsign.pipeline.memory_format import lay_out
from sparsign.pipeline.plan import StagePlan


@dataclass
class Trained:
    """What training starts with and hands over: the network with all transforms, and how it did on the test set.

    `cache`: folder of pretrain stages that runs share, or None. `top1` after every stage, `logits` [N, classes] (fp32)
    of the last.
    """

    config: DictConfig
    model: nn.Module
    compressor: Compressor
    data: ImageData
    folder: RunFolder
    plan: list[StagePlan]
    cache: Path | None = None
    top1: dict[str, float] = field(default_factory=dict)
    logits: Tensor | None = None


def test_top1(run: Trained) -> float:
    """Top-1 on the test set in fp32, as a fraction; keeps the logits."""
    answers, labels = _answers(run, run.data.test_dataloader())
    run.logits = torch.cat(answers)
    return _top1(run.logits, torch.cat(labels))


def held_out_top1(run: Trained) -> float | None:
    """Top-1 on the validation images, measured the same way; None where nothing is held out."""
    answers, labels = _answers(run, run.data.val_dataloader())
    return _top1(torch.cat(answers), torch.cat(labels)) if answers else None


@torch.no_grad()
def _answers(run: Trained, batches: Batches) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of every batch.

    In the memory layout of the packed network: others sum in another order, and a last bit flips a binary activation.
    """
    lay_out(run.model.eval(), torch.contiguous_format)
    device = next(run.model.parameters()).device
    answers, truth = [], []
    for images, labels in batches:
        answers.append(run.model(images.to(device, memory_format=torch.contiguous_format)).cpu())
        truth.append(labels.cpu())
    return answers, truth


def _top1(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
