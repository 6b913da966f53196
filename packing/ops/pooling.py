"""Operations that change the size of the image: pooling, upsampling."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sparsign.packing.ops.base import Attrs, Least, Node, Op, Shape, Tensors, pair, windows
from sparsign.packing.weight import need


class _Pool(Op):
    attrs: ClassVar[Attrs] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": False}
    least: ClassVar[Least] = {"padding": 0}
    rank = 3
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        a, (channels, *size) = node.attrs, inputs[0]
        found = [channels]
        for axis, n in enumerate(size):
            kernel, stride, padding = a["kernel"][axis], a["stride"][axis], a["padding"][axis]
            dilation = a.get("dilation", (1, 1))[axis]
            need(2 * padding <= kernel, f"padding {padding} is more than half of kernel {kernel}")
            # taps further apart than the image is wide: a window may meet padding alone, whose maximum is -inf
            need(not padding or dilation <= n, f"a dilation of {dilation} over {n} padded pixels")
            count = windows(n, kernel, stride, padding, dilation)
            if a["ceil_mode"] and count:
                reach = n + 2 * padding - (dilation * (kernel - 1) + 1)
                count = -(-reach // stride) + 1
                count -= (count - 1) * stride >= n + padding  # no window starts in the padding
            found.append(count)
        return tuple(found)

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        a = {"kernel": pair(module.kernel_size), "stride": pair(module.stride), "padding": pair(module.padding)}
        return {**a, "ceil_mode": module.ceil_mode}


class MaxPool(_Pool):
    name = "maxpool"
    attrs: ClassVar[Attrs] = {
        "kernel": (2, 2),
        "stride": (2, 2),
        "padding": (0, 0),
        "dilation": (1, 1),
        "ceil_mode": False,
    }
    keeps_signs = True  # padding counts as minus infinity

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        a = node.attrs
        return F.max_pool2d(x[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {**super().attributes(module), "dilation": pair(module.dilation)}


class AvgPool(_Pool):
    name = "avgpool"
    attrs: ClassVar[Attrs] = {
        "kernel": (2, 2),
        "stride": (2, 2),
        "padding": (0, 0),
        "ceil_mode": False,
        "count_include_pad": True,
    }

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        a = node.attrs
        return F.avg_pool2d(x[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"])

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        if module.divisor_override is not None:
            raise ValueError(f"avgpool with divisor_override={module.divisor_override}: expected None")
        return {**super().attributes(module), "count_include_pad": module.count_include_pad}


class GlobalAvgPool(Op):
    name = "globalavgpool"
    rank = 3
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        return (inputs[0][0], 1, 1)

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x[0], 1)


class Upsample(Op):
    """Nearest or bilinear (corners not aligned) by whole factors."""

    name = "upsample"
    attrs: ClassVar[Attrs] = {"factor": (2, 2), "bilinear": False}
    rank = 3
    channelwise = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        channels, *size = inputs[0]
        return (channels, *(n * f for n, f in zip(size, node.attrs["factor"], strict=True)))

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        size = [n * f for n, f in zip(x[0].shape[2:], node.attrs["factor"], strict=True)]
        return F.interpolate(x[0], size, mode="bilinear" if node.attrs["bilinear"] else "nearest")

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        factor = module.scale_factor
        factors = pair(factor) if isinstance(factor, tuple) else (factor, factor)
        whole = module.size is None and all(f is not None and f == int(f) >= 1 for f in factors)
        if not whole or module.mode not in ("nearest", "bilinear") or module.align_corners:
            raise ValueError(f"upsample with {module.extra_repr()}: expected a whole factor, nearest or bilinear")
        return {"factor": tuple(map(int, factors)), "bilinear": module.mode == "bilinear"}
