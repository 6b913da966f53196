"""Operations that join tensors or move channels: input, add, mul, cat, select, permute, flatten, pad_shortcut."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsign.packing.ops.base import LIMIT, Attrs, Least, Node, Op, Shape, Tensors
from sparsign.packing.weight import check_index, need


class Input(Op):
    """The images; exactly one, and first. Its shape is the model's."""

    name = "input"
    arity = (0, 0)


class Add(Op):
    """x + y. Where operands lack channels, `index0` and `index1` say into which of `channels` theirs go."""

    name = "add"
    attrs: ClassVar[Attrs] = {"channels": 0}
    least: ClassVar[Least] = {"channels": 0}
    arity = (2, 2)
    optional = indices = ("index0", "index1")

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        need(inputs[0][1:] == inputs[1][1:], f"inputs {[list(s) for s in inputs]} differ beyond their channels")
        channels = node.attrs["channels"] if node.tensors else inputs[0][0]
        for k, shape in enumerate(inputs):
            index = node.tensors.get(f"index{k}")
            if index is not None:
                check_index(f"index{k}", index, channels)
            covered = channels if index is None else len(index)
            need(shape[0] == covered, f"input {k} has {shape[0]} channels, expected {covered}")
        return (channels, *inputs[0][1:])

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        if not t:
            return x[0] + x[1]
        total = x[0].new_zeros(x[0].shape[0], node.attrs["channels"], *x[0].shape[2:])
        for k, operand in enumerate(x):
            if f"index{k}" in t:
                total[:, t[f"index{k}"]] += operand
            else:
                total += operand
        return total


class Mul(Op):
    """x * y; y may be [C, 1, 1] or [C] against x's [C, H, W] (a gate)."""

    name = "mul"
    arity = (2, 2)

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        x, y = inputs
        good = x[0] == y[0] and y[1:] in (x[1:], (1,) * len(x[1:]), ())
        need(good, f"inputs {[list(s) for s in inputs]} do not multiply")
        return x

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0] * (x[1] if x[0].dim() == x[1].dim() else x[1][..., None, None])


class Cat(Op):
    """All channels of the inputs, one after the other."""

    name = "cat"
    arity = (1, LIMIT)
    keeps_signs = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        rest = inputs[0][1:]
        found = [list(s) for s in inputs[:9]]
        need(all(s[1:] == rest for s in inputs), f"inputs {found} differ beyond their channels")
        return (sum(s[0] for s in inputs), *rest)

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return torch.cat(x, dim=1)


class Select(Op):
    """The channels in `index`, in increasing order: what a cut or a slice leaves."""

    name = "select"
    required = indices = ("index",)
    keeps_signs = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        check_index("index", node.tensors["index"], inputs[0][0])
        return (len(node.tensors["index"]), *inputs[0][1:])

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0][:, t["index"]]


class Permute(Op):
    """Channel c of the output is channel order[c] of the input: channel shuffles."""

    name = "permute"
    required = orders = ("order",)
    keeps_signs = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        order, channels = node.tensors["order"], inputs[0][0]
        need(np.array_equal(np.sort(order), np.arange(channels)), f"order is no permutation of {channels} channels")
        return inputs[0]

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0][:, t["order"]]


class Flatten(Op):
    """[C, H, W] -> [C H W]."""

    name = "flatten"
    keeps_signs = True

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        return (math.prod(inputs[0]),)

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        return x[0].flatten(1)


class PadShortcut(Op):
    """Every `stride`-th pixel, with `before` and `after` new channels of zeros: ResNet's option A."""

    name = "pad_shortcut"
    attrs: ClassVar[Attrs] = {"stride": 1, "before": 0, "after": 0}
    least: ClassVar[Least] = {"before": 0, "after": 0}
    rank = 3

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        a, (channels, *size) = node.attrs, inputs[0]
        return (a["before"] + channels + a["after"], *(-(-n // a["stride"]) for n in size))

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        stride = node.attrs["stride"]
        return F.pad(x[0][:, :, ::stride, ::stride], (0, 0, 0, 0, node.attrs["before"], node.attrs["after"]))

    def attributes(self, module: nn.Module) -> dict[str, int]:
        return {"stride": module.stride, "before": module.before, "after": module.after}
