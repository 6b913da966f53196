"""`schedule.<kind>.cut=true`: after the last stage of that kind the network is rebuilt without its dead channels.

The stage's projection is done, its test is the cut network's, and its checkpoint says what is kept, so that a resumed
run cuts a fresh network alike before it loads the state. The next stage starts with a fresh optimizer, as every stage.
"""

from __future__ import annotations

import copy

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import ChannelMask, found
from sparsign.compressors.pruning.cut import remove_filters
from sparsign.models.cutting import cut, cuttable, numbers

NOTHING_DEAD = "no channel is dead in all of its stream"


def cut_network(config: DictConfig, model: nn.Module, kind: str) -> tuple[int, int]:
    """Cuts what is dead; returns the parameters before and after.

    Raises:
        ValueError: a network or method for which the cut would change the answers; one line.
    """
    example = _example(config, model)
    before = _count(model)
    try:
        cut(model, cuttable(model, example))
        _run(model, example)
    except ValueError as error:
        raise ValueError(f"schedule.{kind}.cut=true: {error}") from None
    return before, _count(model)


def check_cut(config: DictConfig, model: nn.Module, kind: str) -> None:
    """Tries the cut on a copy of the prepared network with half of the filters of every layer removed, where the method
    removes filters. Raises what `cut_network` would raise after hours of training."""
    trial = copy.deepcopy(model)
    names = {id(layer): name for name, layer in trial.named_modules()}
    layers = [(names[id(layer)], len(layer.weight)) for layer, _ in found(trial, ChannelMask)]
    dead = {name: torch.arange(count) >= (count + 1) // 2 for name, count in layers[1:-1]}
    if dead:
        remove_filters(trial, _example(config, trial), dead)
    cut_network(config, trial, kind)


def _example(config: DictConfig, model: nn.Module) -> Tensor:
    m = config.model
    return torch.zeros(1, m.in_channels, m.image_size, m.image_size, device=next(model.parameters()).device)


@torch.no_grad()
def _run(model: nn.Module, example: Tensor) -> None:
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()(example)
    except RuntimeError as error:  # torch's word for shapes that do not fit
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network's own code wants all of its channels: {first}") from None
    finally:
        for module in training:
            module.training = True


def _count(model: nn.Module) -> int:
    return sum(getattr(module, name).numel() for module, name in numbers(model))
