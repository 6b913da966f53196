"""A packed network in plain torch operations: the fallback engine, and the oracle of every faster one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsign.packing.spec import Node, PackedModel

INTEGER_KEEPING = ("select", "flatten", "maxpool")
"""Operations after which +1 and -1 are still +1 and -1."""


class ReferenceEngine:
    """Runs a packed network node by node in fp32, with the operations torch itself would use in eval mode.

    Raises:
        ValueError: the packed model does not hang together or has no graph, or images of another shape are given.
    """

    name = "reference"
    isa = "torch"

    def __init__(self, packed: PackedModel) -> None:
        packed.validate()
        if not packed.has_graph:
            raise ValueError("the packed model holds layers without a graph: expected one that can be run")
        self.packed = packed
        self._tensors = {node.name: _tensors(node) for node in packed.nodes}
        last_reader = {source: node.name for node in packed.nodes for source in node.inputs}
        self._finished = {node.name: {s for s in node.inputs if last_reader[s] == node.name} for node in packed.nodes}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised fp32 images [N, C, H, W]."""
        for node, _, output in self._run(images):
            if node.name == self.packed.output:
                return output
        raise AssertionError("a validated model has its output among its nodes")

    @torch.inference_mode()
    def accumulators(self, images: Tensor) -> dict[str, Tensor]:
        """int32 sums over codes * (+1 | -1), before scale and bias, of every coded layer that reads signs."""
        signs: set[str] = set()
        found = {}
        for node, inputs, _ in self._run(images):
            if node.op == "sign" or (node.op in INTEGER_KEEPING and node.inputs[0] in signs):
                signs.add(node.name)
            elif node.codes is not None and node.codes.codes is not None and node.inputs[0] in signs:
                codes = torch.from_numpy(node.codes.dense_codes().astype(np.float64))
                found[node.name] = _weighted(node, inputs[0].double(), codes, None).round().to(torch.int32)
        return found

    def _run(self, images: Tensor) -> Iterator[tuple[Node, list[Tensor], Tensor]]:
        """(node, its inputs, its output) in order; an output is dropped after its last reader."""
        expected = self.packed.input_shape
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(expected):
            raise ValueError(f"images of shape {list(images.shape)}, expected [N, {', '.join(map(str, expected))}]")
        values: dict[str, Tensor] = {}
        for node in self.packed.nodes:
            inputs = [values[name] for name in node.inputs]
            output = images.float() if node.op == "input" else _OPS[node.op](node, self._tensors[node.name], *inputs)
            values[node.name] = output
            yield node, inputs, output
            for name in self._finished[node.name]:
                del values[name]


Tensors = dict[str, Tensor]


def _tensors(node: Node) -> Tensors:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in node.tensors.items()}
    if node.codes is not None:
        tensors["weight"] = torch.from_numpy(np.ascontiguousarray(node.codes.weight()))
    if node.op == "affine":
        tensors["mean"] = torch.zeros_like(tensors["scale"])
        tensors["var"] = torch.ones_like(tensors["scale"])
    return tensors


def _weighted(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if node.op == "linear":
        return F.linear(x, weight, bias)
    a = node.attrs
    return F.conv2d(x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])


def _affine(node: Node, t: Tensors, x: Tensor) -> Tensor:
    """a x + b through torch's own batch norm, so that it rounds (one fused multiply-add) as the trained network did."""
    return F.batch_norm(x, t["mean"], t["var"], t["scale"], t["shift"], False, 0.0, 0.0)


def _maxpool(node: Node, t: Tensors, x: Tensor) -> Tensor:
    a = node.attrs
    return F.max_pool2d(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


def _avgpool(node: Node, t: Tensors, x: Tensor) -> Tensor:
    a = node.attrs
    return F.avg_pool2d(x, a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"])


def _add(node: Node, t: Tensors, x: Tensor, y: Tensor) -> Tensor:
    if not t:
        return x + y
    total = x.new_zeros(len(x), node.attrs["channels"], *x.shape[2:])
    for name, operand in (("index0", x), ("index1", y)):
        if name in t:
            total[:, t[name]] += operand
        else:
            total += operand
    return total


def _pad_shortcut(node: Node, t: Tensors, x: Tensor) -> Tensor:
    stride = node.attrs["stride"]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, node.attrs["before"], node.attrs["after"]))


_OPS: dict[str, Callable[..., Tensor]] = {
    "conv": lambda node, t, x: _weighted(node, x, t["weight"], t.get("bias")),
    "linear": lambda node, t, x: _weighted(node, x, t["weight"], t.get("bias")),
    "affine": _affine,
    "relu": lambda node, t, x: F.relu(x),
    "prelu": lambda node, t, x: F.prelu(x, t["slope"]),
    "relu6": lambda node, t, x: F.relu6(x),
    "hardtanh": lambda node, t, x: F.hardtanh(x, node.attrs["min"], node.attrs["max"]),
    "sign": lambda node, t, x: torch.where(x >= 0, 1.0, -1.0),
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "globalavgpool": lambda node, t, x: F.adaptive_avg_pool2d(x, 1),
    "add": _add,
    "cat": lambda node, t, *inputs: torch.cat(inputs, dim=1),
    "flatten": lambda node, t, x: x.flatten(1),
    "pad_shortcut": _pad_shortcut,
    "select": lambda node, t, x: x[:, t["index"]],
}
