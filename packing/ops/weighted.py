"""Layers with a weight: conv, transposed conv, linear. `run` also sums integer codes, for exact accumulators."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sparsign.packing.ops.base import Attrs, Least, Node, Op, Shape, Tensors, windows
from sparsign.packing.weight import check_floats, need


class _Weighted(Op):
    weighted = True
    optional = ("bias",)
    dims = 4

    def _outputs(self, node: Node) -> int:
        return len(node.codes.rows)

    def _check(self, node: Node) -> None:
        node.codes.check(self.dims)
        if "bias" in node.tensors:
            check_floats("bias", node.tensors["bias"], (self._outputs(node),))

    def macs(self, node: Node, output: Shape) -> int:
        return math.prod(node.codes.layout.stored_shape()) * math.prod(output[1:])

    def arrays(self, module: nn.Module) -> Tensors:
        return {} if module.bias is None else {"bias": module.bias.detach().float().cpu()}


class Linear(_Weighted):
    name = "linear"
    dims = 2
    rank = 1

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        self._check(node)
        need(inputs[0][0] == len(node.codes.cols), f"reads {inputs[0][0]} features, expected {len(node.codes.cols)}")
        return (len(node.codes.rows),)

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return F.linear(x[0], t["weight"], t.get("bias"))


class Conv(_Weighted):
    name = "conv"
    attrs: ClassVar[Attrs] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    least: ClassVar[Least] = {"padding": 0}
    rank = 3

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        self._check(node)
        (channels, *size), a = inputs[0], node.attrs
        rows, cols = node.codes.shape[:2]
        need(channels == cols * a["groups"], f"reads {channels} channels, expected {cols * a['groups']}")
        need(rows % a["groups"] == 0, f"{rows} rows do not divide into {a['groups']} groups")
        kernel = node.codes.full_shape[2:]
        return (rows, *map(windows, size, kernel, a["stride"], a["padding"], a["dilation"]))

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        a = node.attrs
        return F.conv2d(x[0], t["weight"], t.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        padding = module.padding
        if isinstance(padding, str):  # "valid", or "same" of odd kernels
            padding = [(k - 1) * d // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
            padding = padding if module.padding == "same" else (0, 0)
        return {
            "stride": tuple(module.stride),
            "padding": tuple(padding),
            "dilation": tuple(module.dilation),
            "groups": module.groups,
        }


class ConvTranspose(_Weighted):
    """Rows of the weight are input channels, columns output channels (per group), as in torch."""

    name = "conv_transpose"
    attrs: ClassVar[Attrs] = {
        "stride": (1, 1),
        "padding": (0, 0),
        "output_padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
    }
    least: ClassVar[Least] = {"padding": 0, "output_padding": 0}
    rank = 3

    def _outputs(self, node: Node) -> int:
        return len(node.codes.cols) * node.attrs["groups"]

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        self._check(node)
        (channels, *size), a = inputs[0], node.attrs
        rows = len(node.codes.rows)
        need(channels == rows and rows % a["groups"] == 0, f"reads {channels} channels, expected {rows}")
        found = [self._outputs(node)]
        for axis, n in enumerate(size):
            stride, dilation, more = a["stride"][axis], a["dilation"][axis], a["output_padding"][axis]
            need(more < max(stride, dilation), f"output_padding {more} is not below stride or dilation")
            span = dilation * (node.codes.full_shape[2 + axis] - 1)
            found.append((n - 1) * stride - 2 * a["padding"][axis] + span + more + 1)
        return tuple(found)

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        a = node.attrs
        places = (a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
        return F.conv_transpose2d(x[0], t["weight"], t.get("bias"), *places)

    def macs(self, node: Node, output: Shape) -> int:
        """An upper bound: every stored weight meets every output pixel divided by the strides."""
        stored = math.prod(node.codes.layout.stored_shape())
        return stored * math.prod(output[1:]) // math.prod(node.attrs["stride"])

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        names = ("stride", "padding", "output_padding", "dilation")
        return {**{name: tuple(getattr(module, name)) for name in names}, "groups": module.groups}
