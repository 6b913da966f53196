"""What is left of a network after training: the narrow waist that the file, the engines and the accounting share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sparsign.packing.meta import check_meta
from sparsign.packing.ops import OPS, Node
from sparsign.packing.ops.base import LIMIT, Shape
from sparsign.packing.weight import LayerCodes, need

__all__ = ["OPS", "LayerCodes", "Node", "PackedModel"]

ELEMENTS = 1 << 28
"""Largest activation, in values per image, that is believed."""


@dataclass
class PackedModel:
    """A network as nodes in topological order. Images are [N, *input_shape], fp32, normalised; `output`: logits [N, n].

    `meta` is a plain JSON object that `packing.meta` describes.
    """

    nodes: list[Node]
    input_shape: tuple[int, ...]
    output: str
    meta: dict[str, Any] = field(default_factory=dict)
    bytes_on_disk: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Filled in by the reader: bytes of every node in its file, and of the `header`, which is the rest."""
    _shapes: dict[str, Shape] | None = field(default=None, init=False, repr=False, compare=False)

    def layers(self) -> dict[str, Node]:
        """The nodes with a weight, by name, in order."""
        return {node.name: node for node in self.nodes if node.codes is not None}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Output shape of every node, without the batch dimension: as `validate` found it when it last ran."""
        return self.validate() if self._shapes is None else self._shapes

    def validate(self) -> dict[str, Shape]:
        """Infers the shapes anew, and keeps them.

        Raises:
            ValueError: anything that would not run: unknown operations, wrong attributes, tensors that do not fit.
        """
        shapes: dict[str, Shape] = {}
        shape = tuple(self.input_shape)
        need(len(shape) == 3 and all(1 <= n <= LIMIT for n in shape), f"input shape {list(shape)}, expected [C, H, W]")
        for position, node in enumerate(self.nodes):
            try:
                shapes[node.name] = self._infer(node, position, shapes)
            except ValueError as error:
                raise ValueError(f"node {node.name!r} ({node.op}): {error}") from None
        need(self.output in shapes, f"output {self.output!r} is no node")
        need(len(shapes[self.output]) == 1, f"output {self.output!r}: expected logits [classes]")
        check_meta(self.meta)
        self._shapes = shapes
        return shapes

    def _infer(self, node: Node, position: int, shapes: dict[str, Shape]) -> Shape:
        need(node.name not in shapes, "its name is taken")
        need(node.op in OPS, f"unknown operation {node.op!r}")
        need((node.op == "input") == (position == 0), "expected exactly one input, as first node")
        missing = [name for name in node.inputs if name not in shapes]
        need(not missing, f"reads {missing[:1]} which no earlier node makes")
        if position == 0:
            need(not (node.inputs or node.attrs or node.tensors or node.codes), "expected an input of nothing else")
            return tuple(self.input_shape)
        shape = OPS[node.op].infer(node, [shapes[name] for name in node.inputs])
        need(all(n >= 1 for n in shape), f"its output would have shape {list(shape)}")
        need(math.prod(shape) <= ELEMENTS, f"its output {list(shape)} is too large")
        return shape

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of one image, of what is stored, by node."""
        return {node.name: OPS[node.op].macs(node, self.shapes[node.name]) for node in self.nodes}

    def activation_bytes(self) -> int:
        """Bytes of the largest set of fp32 activations that are needed at once, for one image."""
        last = {source: k for k, node in enumerate(self.nodes) for source in node.inputs}
        alive = most = 0
        for k, node in enumerate(self.nodes):
            alive += 4 * math.prod(self.shapes[node.name])
            most = max(most, alive)
            alive -= sum(4 * math.prod(self.shapes[source]) for source in set(node.inputs) if last[source] == k)
        return most

    def reads_signs(self) -> set[str]:
        """Names of the nodes whose every input is +1 or -1 wherever it comes from."""
        signs = self.sign_valued()
        return {node.name for node in self.nodes if node.inputs and signs.issuperset(node.inputs)}

    def sign_valued(self) -> set[str]:
        """Names of the nodes whose values are all +1 or -1."""
        signs: set[str] = set()
        for node in self.nodes:
            kept = OPS[node.op].keeps_signs and node.inputs and signs.issuperset(node.inputs)
            if node.op == "sign" or kept:
                signs.add(node.name)
        return signs
