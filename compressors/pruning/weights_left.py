"""How many weights the masks of a network leave, before any dead path goes."""

from __future__ import annotations

import torch
from torch import nn

from sparsign.compressors.parts.transforms import Mask, transforms


def weights_left(model: nn.Module) -> dict[str, int]:
    """`weights_left` of all conv and linear layers and `conv_weights_left`; empty where no layer has an active mask.

    A weight is left where every mask of its layer is 1: a zero that a quantizer makes there still counts.
    """
    total = conv = 0
    masked = False
    for layer in model.modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        masks = [t.mask for t in transforms(layer) if isinstance(t, Mask) and t.active]
        masked = masked or bool(masks)
        left = torch.ones(layer.weight.shape, dtype=torch.bool, device=layer.weight.device)
        for mask in masks:
            left &= mask != 0
        total += int(left.sum())
        conv += int(left.sum()) if isinstance(layer, nn.Conv2d) else 0
    return {"weights_left": total, "conv_weights_left": conv} if masked else {}
