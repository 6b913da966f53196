"""The memory layout of convolutions: one to train in, and the packed network's to be tested in."""

from __future__ import annotations

import torch
from torch import nn


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """The memory layout of all conv weights; masks and duals keep theirs."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.to(memory_format=layout)  # contiguous() would keep the strides of one-channel stems
