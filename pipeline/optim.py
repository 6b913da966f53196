"""From a recipe to an optimizer and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsign.compressors.base import Recipe
from sparsign.configs.schema import StageConfig


def merge(recipe: Recipe, stage: StageConfig) -> Recipe:
    """The compressor's recipe with what the schedule says put over it; a stage that trains nothing stays so.

    decay=multistep without milestones of the method's own: x0.1 at 1/2 and 3/4 of the stage (our choice).
    """
    names = ("epochs", "optimizer", "lr", "weight_decay", "momentum", "decay")
    if recipe.epochs == 0:
        return recipe
    recipe = replace(recipe, **{n: getattr(stage, n) for n in names if getattr(stage, n) is not None})
    if recipe.decay == "multistep" and not recipe.milestones:
        recipe = replace(recipe, milestones=(0.5, 0.75), gamma=0.1)
    return recipe


UNNORMALISED_LR = 0.02


def suited(recipe: Recipe, net: nn.Module) -> Recipe:
    """Caps SGD's rate at 0.02 for a network without BN (LeNet-5, plain AlexNet), which diverges above (our choice)."""
    if recipe.optimizer == "adam" or any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.modules()):
        return recipe
    return replace(recipe, lr=min(recipe.lr, UNNORMALISED_LR))


def optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam or SGD over parameter groups, which may carry their own lr, momentum and weight_decay."""
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True, **common)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=nesterov, fused=True, **common)


def lr_factor(recipe: Recipe, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """step -> factor on the initial learning rate.

    cosine: 0.5 (1 + cos(pi t / T)); multistep: gamma at each milestone, a fraction of the stage; cyclic: restarts every
    `interval` epochs, then x0.1 after each third of the interval; constant: 1.
    """
    total = max(1, steps_per_epoch * epochs)

    def factor(step: int) -> float:
        t = min(step / total, 1.0)
        if recipe.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * t))
        if recipe.decay == "multistep":
            gammas = recipe.gamma if isinstance(recipe.gamma, tuple) else [recipe.gamma] * len(recipe.milestones)
            return math.prod(g for g, m in zip(gammas, recipe.milestones, strict=True) if t >= m)
        if recipe.decay == "cyclic":
            span = recipe.interval * steps_per_epoch
            return 0.1 ** int(3 * (step % span) / span)
        return 1.0

    return factor
