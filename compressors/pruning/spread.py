"""Removing whole filters for good: masks on the filter, on its BN and on whoever would read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsign.compressors.parts.transforms import Mask, attach
from sparsign.models.channels import removable

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def attach_channel_masks(model: nn.Module) -> None:
    """A Mask [out, in, 1, 1] as last transform of every conv and linear weight, and masks [C] on BN gamma and beta.

    They start inactive (all ones). A masked gamma and beta stay zero through fine-tuning, so that a removed filter
    emits exactly 0.
    """
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            shape = module.weight.shape
            attach(module, Mask((*shape[:2], *[1] * (len(shape) - 2)), active=False))
        elif isinstance(module, NORMS) and module.affine:
            attach(module, Mask(module.weight.shape, active=False))
            attach(module, Mask(module.bias.shape, active=False), tensor="bias")


@torch.no_grad()
def remove_filters(model: nn.Module, example: Tensor, dead: dict[str, Tensor]) -> None:
    """Masks the filters `dead[layer]` (bool [out]) and everything that becomes dead with them, in place.

    A removed channel counts as removed behind a sign too, although sign(0) = +1: its readers' columns are masked. In a
    residual stream a channel is only dead when no producer is left (unused-path rule, ADMM-NN-S lab code).

    Raises:
        KeyError: a layer without a channel mask (see `attach_channel_masks`).
    """
    for module in model.modules():
        if isinstance(module, Mask):
            module.active = True
    for name, rows in dead.items():
        _channel_mask(model.get_submodule(name))[rows] = 0
    for name, gone in removable(model, example, through_sign=True).items():
        module = model.get_submodule(name)
        if isinstance(module, NORMS):
            for tensor in ("weight", "bias") if module.affine else ():
                module.parametrizations[tensor][-1].mask[gone.rows_removed.to(example.device)] = 0
        else:
            mask = _channel_mask(module)
            mask[gone.rows_removed.to(mask.device)] = 0
            if mask.shape[1] == len(gone.cols_removed):  # not so for grouped convolutions: they go whole
                mask[:, gone.cols_removed.to(mask.device)] = 0


def _channel_mask(layer: nn.Module) -> Tensor:
    last = layer.parametrizations.weight[-1] if parametrize.is_parametrized(layer, "weight") else None
    if not isinstance(last, Mask):
        raise KeyError(f"{type(layer).__name__} has no channel mask")
    return last.mask
