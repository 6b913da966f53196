"""A packed network in plain torch operations: the fallback engine, and the oracle of every faster one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparsign.packing.spec import OPS, Node, PackedModel


class ReferenceEngine:
    """Runs a packed network node by node in fp32, with the operations torch itself would use in eval mode.

    Raises:
        ValueError: the packed model does not hang together, or images of another shape are given.
    """

    name = "reference"
    isa = "torch"

    def __init__(self, packed: PackedModel) -> None:
        _ = packed.shapes  # checks the model where nobody has
        self.packed = packed
        self._tensors = {node.name: node_tensors(node) for node in packed.nodes}
        last_reader = {source: node.name for node in packed.nodes for source in node.inputs}
        self._finished = {node.name: {s for s in node.inputs if last_reader[s] == node.name} for node in packed.nodes}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised fp32 images [N, C, H, W]."""
        for node, _, output in self.steps(images):
            if node.name == self.packed.output:
                return output
        raise AssertionError("a validated model has its output among its nodes")

    @torch.inference_mode()
    def accumulators(self, images: Tensor) -> dict[str, Tensor]:
        """int32 sums over codes * (+1 | -1), before scale and bias, of every coded layer that reads signs."""
        readers = self.packed.reads_signs()
        found = {}
        for node, inputs, _ in self.steps(images):
            if node.name in readers and node.codes is not None and node.codes.coded:
                codes = {"weight": torch.from_numpy(node.codes.dense_codes().astype(np.float64))}
                sums = OPS[node.op].run(node, codes, inputs[0].double())
                found[node.name] = sums.round().to(torch.int32)
        return found

    @torch.inference_mode()
    def steps(self, images: Tensor) -> Iterator[tuple[Node, list[Tensor], Tensor]]:
        """(node, its inputs, its output) in order; an output is dropped after its last reader."""
        expected = self.packed.input_shape
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(expected):
            raise ValueError(f"images of shape {list(images.shape)}, expected [N, {', '.join(map(str, expected))}]")
        values: dict[str, Tensor] = {}
        for node in self.packed.nodes:
            inputs = [values[name] for name in node.inputs]
            output = OPS[node.op].run(node, self._tensors[node.name], *inputs) if inputs else images.float()
            values[node.name] = output
            yield node, inputs, output
            for name in self._finished[node.name]:
                del values[name]


def node_tensors(node: Node) -> dict[str, Tensor]:
    """A node's arrays, with its dense fp32 `weight` where it has codes."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in node.tensors.items()}
    if node.codes is not None:
        tensors["weight"] = torch.from_numpy(np.ascontiguousarray(node.codes.weight()))
    return tensors
