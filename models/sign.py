"""The binary activation: sign with a pseudo-gradient."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

SignGradient = Literal["hardtanh", "approx"]


class _SignHardtanh(torch.autograd.Function):
    """q(x) = 1 if x >= 0 else -1; dq/dx := 1 if |x| < 1 else 0 (straight-through, clipped; STQ's lab code)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return binarize(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, -1, 1)


class _SignApprox(torch.autograd.Function):
    """q(x) = 1 if x >= 0 else -1; dq/dx := 2 + 2x on [-1, 0), 2 - 2x on [0, 1), 0 elsewhere (Bi-Real Net)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return binarize(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.rsub(x.abs(), 2, alpha=2).clamp_(min=0).mul_(grad)


def binarize(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1, in x's shape and dtype. Zero counts as positive, unlike in `torch.sign`."""
    return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x + 0.0)  # + 0.0 makes -0.0 positive


class Sign(nn.Module):
    """Binary activation: any shape in, the same shape of +1 / -1 out.

    forward   q(x) = 1 if x >= 0 else -1
    backward  "hardtanh":  dq/dx = 1[|x| < 1]                                     (XNOR-Net, STQ: lab code)
              "approx":    dq/dx = 2 + 2x on [-1, 0), 2 - 2x on [0, 1), else 0     (Bi-Real Net: paper)

    Raises ValueError for another gradient name.
    """

    def __init__(self, gradient: SignGradient = "hardtanh") -> None:
        super().__init__()
        if gradient not in ("hardtanh", "approx"):
            raise ValueError(f"Sign gradient is {gradient!r}; expected hardtanh or approx")
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return (_SignHardtanh if self.gradient == "hardtanh" else _SignApprox).apply(x)

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"
