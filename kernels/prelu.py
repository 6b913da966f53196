"""The gradient of PReLU in vectorised passes, with torch's bits: ReActNet's blocks have one behind every conv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Prelus(TorchFunctionMode):
    """Within this context every `prelu` on the CPU that needs no cast takes its gradient by `prelu` below."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.prelu and _takes(*args, **kwargs):
            return prelu(*args, **kwargs)
        return func(*args, **kwargs)


def _takes(input: Tensor, weight: Tensor) -> bool:
    """Whether nothing would be cast but the weight, and it has one slope a channel or one in all."""
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else weight.dtype
    fits = input.dim() > 1 and weight.dim() == 1 and weight.numel() in (1, input.shape[1])
    return fits and input.device.type == "cpu" and input.dtype == dtype and dtype in (torch.float32, torch.bfloat16)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else w_c x, for x [N, C, ...] and w [C] or [1]."""
    slopes = weight.to(input.dtype).view(1, -1, *[1] * (input.dim() - 2))
    return _Prelu.apply(input, slopes)


class _Prelu(torch.autograd.Function):
    """dL/dx = g where x > 0, else w g; dL/dw = the sum of x g where x <= 0.

    torch's kernel goes number by number and guesses every sign. These passes are vectorised; as one of two terms is
    always 0, finite numbers come out with the same bits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, slopes)
        return torch.ops.aten._prelu_kernel(x, slopes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slopes = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, x, 0)
        below = grad - above
        return torch.addcmul(above, below, slopes), (below * x).sum_to_size(slopes.shape)
