"""Binary convolutions in training by the compiled engine: exact integer sums forward, torch's gradients backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from sparsign.kernels.engine import native
from sparsign.kernels.prelu import Prelus

Pair = tuple[int, int]
SMALL = 64
"""Output pixels up to which the weight's fp32 gradient is a product of matrices per tap of the kernel: 1.2 to 5 times
faster than oneDNN's convolution there (AVX2, one thread, batch 128)."""


@contextmanager
def training_kernels(wanted: bool) -> Iterator[None]:
    """`Prelus`, and `SignConvs` where the engine was built for instructions that make it worth it; nothing unwanted."""
    engine = native() is not None and native().isas()[0] != "generic"
    with Prelus() if wanted else nullcontext(), SignConvs() if wanted and engine else nullcontext():
        yield


class SignConvs(TorchFunctionMode):
    """Within this context every `conv2d` of signs with binary or ternary weights is summed by the compiled engine.

    It looks at the numbers: activations 1, -1 and 0 (times one number, as dropout leaves them) and filters of one
    magnitude each, on the CPU in fp32, or under bf16 autocast without a bias. Every other convolution is torch's own.
    Without scales (BNN, STQ-A) the outputs are torch's to the bit; with them they are the exact sums, rounded once.
    Gradients are torch's, in bf16 to the bit.

    isa: the instruction set; empty for the best.
    """

    def __init__(self, isa: str = "") -> None:
        super().__init__()
        if isa and isa not in native().isas():
            raise ValueError(f"isa={isa}: expected one of {', '.join(native().isas())}")
        self.isa = isa

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            y = self._convolved(*args, **kwargs)
            if y is not None:
                return y
        return func(*args, **kwargs)

    def _convolved(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution with its gradients, or None where torch shall do it."""
        cast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if cast else torch.float32
        if groups != 1 or isinstance(padding, str) or input.dim() != 4 or (cast and dtype != torch.bfloat16):
            return None
        if any(
            t.device.type != "cpu" or t.dtype not in (torch.float32, dtype) or not t.numel() for t in (input, weight)
        ):
            return None
        if cast and (bias is not None or not _may_be_signs(input)):  # torch adds a bias before it rounds
            return None
        input, weight, geometry = input.to(dtype), weight.to(dtype), (_pair(stride), _pair(padding), _pair(dilation))
        sums = signs_convolved(input.detach(), weight.detach(), *geometry, isa=self.isa)
        if sums is None:
            return None
        y = _Convolved.apply(input, weight, (sums,), geometry)
        return y if bias is None else y + bias.view(-1, 1, 1)


def _may_be_signs(x: Tensor) -> bool:
    """Whether a few of the numbers have one magnitude beside 0: a look before all of them are converted."""
    some = x.detach()[0, :64, 0, 0].abs()
    some = some[some != 0]
    return bool((some == some[:1]).all())


class _Convolved(torch.autograd.Function):
    """y = conv2d(x, w), already computed; dL/dx and dL/dw are those of `conv2d`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, computed: tuple[Tensor], geometry: tuple[Pair, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return computed[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, weight), (for_x, for_weight) = ctx.saved_tensors, ctx.needs_input_grad[:2]
        by_taps = for_weight and grad.dtype == torch.float32 and grad[0, 0].numel() <= SMALL
        rest = (None, *map(list, ctx.geometry), False, [0, 0], 1, [for_x, for_weight and not by_taps, False])
        dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, *rest)
        return dx, weight_gradient(x, grad, weight.shape[2:], *ctx.geometry) if by_taps else dw, None, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """dL/dw [O, C, kh, kw] of conv2d from x [N, C, H, W] and grad [N, O, OH, OW].

    dL/dw[o, c, i, j] = sum over images and output pixels (y, x) of grad[o, y, x] x[c, y s + i d - p, x s + j d - p].
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    outputs, (height, width) = grad.shape[1], grad.shape[2:]
    rows = grad.permute(0, 2, 3, 1).reshape(-1, outputs).t()
    padded = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    found = x.new_empty(outputs, kh, kw, x.shape[1])
    for i in range(kh):
        for j in range(kw):
            below = padded[:, i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
            found[:, i, j] = rows @ below.reshape(-1, x.shape[1])
    return found.permute(0, 3, 1, 2)


def signs_convolved(
    x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, isa: str = ""
) -> Tensor | None:
    """conv2d of x [N, C, H, W] with weight [O, C, kh, kw], fp32 or bf16, on the CPU; None unless both are signs.

    Sums are integers, exact, and the same on any number of threads; scales follow, then x's dtype. Memory layout as
    torch's.
    """
    last = torch.channels_last
    is_last = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in (x, weight))
    x, weight = x.contiguous(memory_format=last), weight.float().contiguous(memory_format=last)
    (n, c, h, w), (outputs, _, *kernel) = x.shape, weight.shape
    size = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip((h, w), kernel, stride, padding, dilation, strict=True)
    ]
    if weight.shape[1] != c or min(size) < 1:
        return None  # torch says what is wrong
    y = torch.empty(n, outputs, *size, dtype=x.dtype, memory_format=last)
    window = native().Window(kernel, stride, padding, dilation)
    threads = torch.get_num_threads()
    pointers = x.data_ptr(), (n, h, w, c), weight.data_ptr(), outputs, window, y.data_ptr(), threads
    try:
        if not native().convolve_signs(isa, x.dtype == torch.bfloat16, *pointers):
            return None
    except ValueError:  # sizes beyond the engine's
        return None
    return y if is_last else y.contiguous()


def _pair(value: int | Pair) -> Pair:
    pair = (value,) if isinstance(value, int) else tuple(value)
    return pair * 2 if len(pair) == 1 else pair
