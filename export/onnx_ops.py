"""How each operation of a packed network is spelled in ONNX: one function per operation, all in `SPELLINGS`.

A spelling gets the graph, the node, the shapes of its inputs without the batch, and their names, the weight's last. It
adds standard operations of opset 17 and later, the last of which makes the result, and returns its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparsign.export.graph import Graph
from sparsign.packing.ops import OPS, Node
from sparsign.packing.ops.base import Shape

FAR = 1 << 30
"""Where a slice to the end ends."""
Spelling = Callable[..., str]
SPELLINGS: dict[str, Spelling] = {}
"""By the name of the operation in `packing.ops.OPS`; `input` is no operation to ONNX."""


def spells(op: str) -> Callable[[Spelling], Spelling]:
    """Enters a spelling."""

    def enter(spelling: Spelling) -> Spelling:
        SPELLINGS[op] = spelling
        return spelling

    return enter


# -- weights -----------------------------------------------------------------------------------------------------------


def _bias(g: Graph, node: Node) -> list[str]:
    return [g.parameter("bias", node.tensors["bias"])] if "bias" in node.tensors else []


def _window(attrs: dict) -> dict:
    return {"strides": attrs["stride"], "dilations": attrs["dilation"], "pads": (*attrs["padding"], *attrs["padding"])}


@spells("linear")
def linear(g: Graph, node: Node, shapes: list[Shape], x: str, weight: str) -> str:
    return g.add("Gemm", x, weight, *_bias(g, node), transB=1)


@spells("conv")
def conv(g: Graph, node: Node, shapes: list[Shape], x: str, weight: str) -> str:
    return g.add("Conv", x, weight, *_bias(g, node), group=node.attrs["groups"], **_window(node.attrs))


@spells("conv_transpose")
def conv_transpose(g: Graph, node: Node, shapes: list[Shape], x: str, weight: str) -> str:
    more = {"group": node.attrs["groups"], "output_padding": node.attrs["output_padding"]}
    return g.add("ConvTranspose", x, weight, *_bias(g, node), **more, **_window(node.attrs))


# -- single numbers ----------------------------------------------------------------------------------------------------


@spells("affine")
def affine(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    """As a batch norm of mean 0 and variance 1: what runtimes fuse into the conv before it."""
    scale, shift = (g.parameter(name, node.tensors[name]) for name in ("scale", "shift"))
    channels = len(node.tensors["scale"])
    mean, variance = g.constant(np.zeros(channels)), g.constant(np.ones(channels))
    return g.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=0.0)


@spells("prelu")
def prelu(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    spread = (1,) * (len(shapes[0]) - 1)
    return g.add("PRelu", x, g.parameter("slope", node.tensors["slope"].reshape(-1, *spread)))


@spells("relu")
def relu(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Relu", x)


@spells("relu6")
def relu6(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Clip", x, g.constant(0), g.constant(6))


@spells("hardtanh")
def hardtanh(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Clip", x, g.constant(node.attrs["min"]), g.constant(node.attrs["max"]))


@spells("sigmoid")
def sigmoid(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Sigmoid", x)


@spells("silu")
def silu(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Mul", x, g.add("Sigmoid", x))


@spells("hardswish")
def hardswish(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("HardSwish", x)


@spells("hardsigmoid")
def hardsigmoid(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@spells("gelu")
def gelu(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    """x (1 + erf(x / sqrt(2))) / 2, or x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2: Gelu is of opset 20."""
    if node.attrs["tanh"]:
        cubic = g.add("Mul", g.constant(0.044715), g.add("Mul", x, g.add("Mul", x, x)))
        inner = g.add("Mul", g.constant(math.sqrt(2 / math.pi)), g.add("Add", x, cubic))
        curve = g.add("Tanh", inner)
    else:
        curve = g.add("Erf", g.add("Mul", x, g.constant(math.sqrt(0.5))))
    return g.add("Mul", g.add("Mul", x, g.constant(0.5)), g.add("Add", curve, g.constant(1)))


@spells("sign")
def sign(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    """ONNX's own Sign makes 0 of 0."""
    return g.add("Where", g.add("GreaterOrEqual", x, g.constant(0)), g.constant(1), g.constant(-1))


@spells("add_scalar")
def add_scalar(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Add", x, g.constant(node.attrs["value"]))


@spells("mul_scalar")
def mul_scalar(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Mul", x, g.constant(node.attrs["value"]))


# -- channels ----------------------------------------------------------------------------------------------------------


@spells("add")
def add(g: Graph, node: Node, shapes: list[Shape], *x: str) -> str:
    spread = [_spread(g, node, k, len(shape), name) for k, (name, shape) in enumerate(zip(x, shapes, strict=True))]
    return g.add("Add", *spread)


def _spread(g: Graph, node: Node, k: int, rank: int, x: str) -> str:
    """Operand k over all channels of the sum: one channel of zeros is appended, and taken wherever it has none."""
    index = node.tensors.get(f"index{k}")
    if index is None:
        return x
    places = np.full(node.attrs["channels"], len(index))
    places[index] = np.arange(len(index))
    after = g.integers(*[0] * (rank + 1), 0, 1, *[0] * (rank - 1))
    return g.add("Gather", g.add("Pad", x, after), g.constant(places, np.int64), axis=1)


@spells("mul")
def mul(g: Graph, node: Node, shapes: list[Shape], x: str, y: str) -> str:
    missing = len(shapes[0]) - len(shapes[1])
    return g.add("Mul", x, g.add("Unsqueeze", y, g.integers(2, 3)) if missing else y)


@spells("cat")
def cat(g: Graph, node: Node, shapes: list[Shape], *x: str) -> str:
    return g.add("Concat", *x, axis=1)


@spells("select")
def select(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Gather", x, g.constant(node.tensors["index"], np.int64), axis=1)


@spells("permute")
def permute(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Gather", x, g.constant(node.tensors["order"], np.int64), axis=1)


@spells("flatten")
def flatten(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("Flatten", x, axis=1)


@spells("pad_shortcut")
def pad_shortcut(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    stride, before, after = (node.attrs[name] for name in ("stride", "before", "after"))
    starts, ends, axes, steps = (g.integers(n, m) for n, m in ((0, 0), (FAR, FAR), (2, 3), (stride, stride)))
    return g.add("Pad", g.add("Slice", x, starts, ends, axes, steps), g.integers(0, before, 0, 0, 0, after, 0, 0))


# -- images ------------------------------------------------------------------------------------------------------------


def _reach(node: Node, shape: Shape) -> list[int]:
    """Pixels beyond the padding that the last window of each axis reads, as `ceil_mode` lets it."""
    a, outputs = node.attrs, OPS[node.op].shape(node, [shape])[1:]
    dilation = a.get("dilation", (1, 1))
    ends = [
        (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(outputs, a["stride"], dilation, a["kernel"], strict=True)
    ]
    return [max(0, e - n - 2 * p) for e, n, p in zip(ends, shape[1:], a["padding"], strict=True)]


@spells("maxpool")
def maxpool(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    """ceil_mode is spelled as padding, which never wins; of that runtimes take less than the kernel's size."""
    a, more = node.attrs, _reach(node, shapes[0])
    pads = (*a["padding"], *(p + m for p, m in zip(a["padding"], more, strict=True)))
    if any(pad >= kernel for pad, kernel in zip(pads[2:], a["kernel"], strict=True)):
        top, left, bottom, right = pads
        x = g.add("Pad", x, g.integers(0, 0, top, left, 0, 0, bottom, right), g.constant(-np.inf))
        pads = (0, 0, 0, 0)
    return g.add("MaxPool", x, kernel_shape=a["kernel"], strides=a["stride"], dilations=a["dilation"], pads=pads)


@spells("avgpool")
def avgpool(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    """What ceil_mode adds never counts; where padding does, zeros are put around the image first."""
    a, more = node.attrs, _reach(node, shapes[0])
    top, left = a["padding"]
    if a["count_include_pad"] and (top or left):
        x, top, left = g.add("Pad", x, g.integers(0, 0, top, left, 0, 0, top, left)), 0, 0
    pads = (top, left, top + more[0], left + more[1])
    return g.add("AveragePool", x, kernel_shape=a["kernel"], strides=a["stride"], pads=pads)


@spells("globalavgpool")
def globalavgpool(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    return g.add("GlobalAveragePool", x)


@spells("upsample")
def upsample(g: Graph, node: Node, shapes: list[Shape], x: str) -> str:
    scales = g.constant((1, 1, *node.attrs["factor"]))
    if node.attrs["bilinear"]:
        return g.add("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return g.add("Resize", x, "", scales, mode="nearest", **how)
