"""The compressor contract driven by a dozen lines of plain PyTorch: what the pipeline must amount to."""

from functools import partial

import torch
from torch import Tensor, nn


def run_stage(
    compressor, model: nn.Module, stage, images: Tensor, labels: Tensor, epochs: int, lr: float, batch: int = 32
):
    """Trains one stage with SGD on (images, labels); returns the metrics of every epoch."""
    compressor.start(model, stage)
    history = []
    groups = compressor.parameters(model, stage)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9) if epochs else None
    for epoch in range(epochs):
        compressor.before_epoch(model, stage, epoch, epochs)
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            loss, penalty = compressor.loss(
                model, stage, (x, y), model(x), partial(nn.functional.cross_entropy, target=y)
            )
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            compressor.before_step(model, stage)
            optimizer.step()
            compressor.after_step(model, stage)
        history.append(compressor.metrics(model))
    compressor.finish(model, stage)
    return history


def run(compressor, model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 1, lr: float = 0.01):
    """All stages of a method, each `epochs` long; returns the model in eval mode and the metrics by stage."""
    compressor.prepare(model, images[:1])
    history = {}
    for stage in compressor.stages(model):
        model.train()
        history[stage.name] = run_stage(compressor, model, stage, images, labels, epochs, lr)
    return model.eval(), history
