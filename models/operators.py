"""Modules for the operators and indices of a forward: numbers added and multiplied, channels picked."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AddNumber(nn.Module):
    """x + value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = float(value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class MulNumber(nn.Module):
    """x * value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = float(value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


class ChannelOrder(nn.Module):
    """Output channel c is input channel order[c], each at most once: [N, C, ...] -> [N, len(order), ...].

    Slices, halves and shuffles of channels.
    """

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.order.to(x.device))
