"""Cut: removing whole filters for good, by masks on the filter, on its BN and on whoever would read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsign.compressors.parts.transforms import ChannelMask, attach, find
from sparsign.models.channels import removable
from sparsign.models.cutting import uncut

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def attach_channel_masks(model: nn.Module) -> None:
    """A mask [out, in, 1, 1] on every conv and linear weight, after what is there, and masks [C] on BN gamma and beta.

    They start inactive (all ones). A masked gamma and beta stay zero through fine-tuning, so that a removed filter
    emits exactly 0.
    """
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            shape = module.weight.shape
            attach(module, ChannelMask((*shape[:2], *[1] * (len(shape) - 2)), active=False))
        elif isinstance(module, NORMS) and module.affine:
            attach(module, ChannelMask(module.weight.shape, active=False))
            attach(module, ChannelMask(module.bias.shape, active=False), tensor="bias")


@torch.no_grad()
def remove_filters(model: nn.Module, example: Tensor, dead: dict[str, Tensor]) -> None:
    """Masks the filters `dead[layer]` (bool [out]) and everything that becomes dead with them, in place.

    A removed channel counts as removed behind a sign too, although sign(0) = +1: its readers' columns are masked. In a
    residual stream a channel is only dead when no producer is left (unused-path rule, ADMM-NN-S lab code).

    Raises:
        KeyError: a layer without a channel mask (see `attach_channel_masks`).
    """
    for module in model.modules():
        if isinstance(module, ChannelMask):
            module.active = True
    for name, rows in dead.items():
        find(model.get_submodule(name), ChannelMask).mask[rows] = 0
    for name, gone in removable(model, example, through_sign=True).items():
        module = model.get_submodule(name)
        if isinstance(module, NORMS):
            for tensor in ("weight", "bias") if module.affine else ():
                find(module, ChannelMask, tensor).mask[gone.rows_removed.to(example.device)] = 0
        else:
            mask = find(module, ChannelMask).mask
            mask[gone.rows_removed.to(mask.device)] = 0
            if mask.shape[1] == len(gone.cols_removed):  # not so for grouped convolutions: they go whole
                mask[:, gone.cols_removed.to(mask.device)] = 0


def filter_metrics(layers: dict[str, nn.Module]) -> dict[str, float | list[float]]:
    """`pfr`: removed filters / all filters of the layers (STQ-Nets, table 1); `kept_filters`: kept part of each layer.

    A removed filter is one that no kernel is left of, as in `evaluation/pruned_ratio.py`; all are those of the uncut
    network.
    """
    kept = [int(find(layer, ChannelMask).mask.flatten(1).amax(dim=1).sum()) for layer in layers.values()]
    filters = [uncut(layer).shape[0] for layer in layers.values()]
    parts = [k / count for k, count in zip(kept, filters, strict=True)]
    return {"pfr": 1 - sum(kept) / sum(filters), "kept_filters": parts}
