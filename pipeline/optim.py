"""From a recipe to an optimizer and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from sparsign.compressors.base import Recipe
from sparsign.configs.schema import StageConfig


def merge(recipe: Recipe, stage: StageConfig) -> Recipe:
    """The compressor's recipe with what the schedule says put over it; a stage that trains nothing stays so.

    decay=multistep without milestones of the method's own: x0.1 at 1/2 and 3/4 of the stage (our choice).

    Raises:
        ValueError: gammas that are no numbers, or not one for each milestone.
    """
    if recipe.epochs == 0:
        return recipe
    asked = {f.name: getattr(stage, f.name) for f in fields(Recipe)}
    recipe = replace(recipe, **{name: _plain(value) for name, value in asked.items() if value is not None})
    if recipe.decay == "multistep":
        if not recipe.milestones:
            recipe = replace(recipe, milestones=(0.5, 0.75), gamma=0.1 if stage.gamma is None else recipe.gamma)
        _check_gamma(recipe)
    return recipe


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else tuple(value)


def _check_gamma(recipe: Recipe) -> None:
    factors = recipe.gamma if isinstance(recipe.gamma, tuple) else (recipe.gamma,)
    numbers = all(isinstance(g, (int, float)) for g in factors)
    if not numbers or len(factors) not in {len(recipe.milestones)} | ({1} if recipe.gamma is factors[0] else set()):
        raise ValueError(
            f"schedule.*.gamma={recipe.gamma}: expected a number, or one for each of the milestones {recipe.milestones}"
        )


UNNORMALISED_LR = 0.02


def suited(recipe: Recipe, net: nn.Module) -> Recipe:
    """Caps SGD's rate at 0.02 for a network without BN (LeNet-5, plain AlexNet), which diverges above (our choice)."""
    if recipe.optimizer == "adam" or any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.modules()):
        return recipe
    return replace(recipe, lr=min(recipe.lr, UNNORMALISED_LR))


class AdamAndSGD(torch.optim.Adam):
    """Adam, but for groups with `plain_sgd`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the loss where a closure computes it and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"] if group.get("plain_sgd") else ():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=float(group["lr"]))
                    p.grad = None  # Adam leaves alone what has none
        super().step()
        return loss


def optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam or SGD over parameter groups, which may carry their own lr, momentum and weight_decay.

    A group with `plain_sgd` goes by w <- w - lr dL/dw under Adam too.
    """
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        kind = AdamAndSGD if any(group.get("plain_sgd") for group in groups) else torch.optim.Adam
        return kind(groups, fused=True, **common)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=nesterov, fused=True, **common)


def lr_factor(recipe: Recipe, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """step -> factor on the initial learning rate.

    cosine: 0.5 (1 + cos(pi t / T)); linear: 1 - t / T; multistep: gamma at each milestone, a fraction of the stage;
    cyclic: restarts every `interval` epochs, then x0.1 after each third of the interval; constant: 1. A warm-up of w
    steps (at most half of the stage) multiplies them by (t + 1) / w; cosine and linear fall in what is left.
    """
    total = max(1, steps_per_epoch * epochs)
    warm = min(int(recipe.warmup * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        return curve(step) * (step + 1) / warm if step < warm else curve(step)

    def curve(step: int) -> float:
        left = min(max(step - warm, 0) / (total - warm), 1.0)
        if recipe.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * left))
        if recipe.decay == "linear":
            return 1 - left
        if recipe.decay == "multistep":
            t = min(step / total, 1.0)
            gammas = recipe.gamma if isinstance(recipe.gamma, tuple) else [recipe.gamma] * len(recipe.milestones)
            return math.prod(g for g, m in zip(gammas, recipe.milestones, strict=True) if t >= m)
        if recipe.decay == "cyclic":
            span = recipe.interval * steps_per_epoch
            return 0.1 ** int(3 * (step % span) / span)
        return 1.0

    return factor
