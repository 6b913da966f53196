"""What an operation of a packed network is: a node, and the one class per operation that knows all its rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sparsign.packing.weight import LayerCodes, check_floats, check_index, need

Shape = tuple[int, ...]
Tensors = dict[str, Tensor]
Attrs = dict[str, Any]
Least = dict[str, int]
LIMIT = 1 << 16
"""Largest stride, kernel or channel count that is believed."""
OPS: dict[str, Op] = {}
"""Every operation, by the name that files use."""


@dataclass
class Node:
    """One operation on the outputs of earlier nodes, which `inputs` names.

    attrs: every attribute of the operation (`OPS[op].attrs`), defaults filled in. tensors: fp32 arrays, and int64 ones
    for channel indices. codes: the weight, for weighted operations.
    """

    op: str
    name: str
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    codes: LayerCodes | None = None

    def __post_init__(self) -> None:
        if self.op in OPS:
            self.attrs = {**OPS[self.op].attrs, **self.attrs}

    @property
    def is_conv(self) -> bool:
        """Whether the node has the weight of a conv layer."""
        return self.codes is not None and len(self.codes.full_shape) == 4


class Op:
    """One operation. A subclass is its whole definition; its name is what files and engines call it.

    Class attributes:
        attrs: attributes with their defaults, of the attributes' types: int, float, bool, or a pair of int.
        least: smallest allowed value of integer attributes, where that is not 1.
        arity: fewest and most inputs.
        required, optional: names of tensors.
        indices: which of those are increasing channel indices (int64); the others are fp32.
        orders: which are channel orders (int64, in any order).
        weighted: carries `codes`.
        rank: number of dimensions of its first input (3 for [C, H, W]), or None for any.
        keeps_signs: inputs of +1 and -1 give outputs of +1 and -1.
        channelwise: output channel c depends on channel c of its only input alone.
    """

    name: ClassVar[str] = ""
    attrs: ClassVar[Attrs] = {}
    least: ClassVar[Least] = {}
    arity: ClassVar[tuple[int, int]] = (1, 1)
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    indices: ClassVar[tuple[str, ...]] = ()
    orders: ClassVar[tuple[str, ...]] = ()
    weighted: ClassVar[bool] = False
    rank: ClassVar[int | None] = None
    keeps_signs: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.name:
            OPS[cls.name] = cls()

    # -- rules ---------------------------------------------------------------------------------------------------------

    def infer(self, node: Node, inputs: list[Shape]) -> Shape:
        """Shape of the output without the batch dimension; ValueError for anything that would not run."""
        least, most = self.arity
        need(least <= len(inputs) <= most, f"has {len(inputs)} inputs")
        if self.rank is not None and len(inputs[0]) != self.rank:
            raise ValueError(
                f"reads shape {list(inputs[0])}, expected {'[C, H, W]' if self.rank == 3 else '[features]'}"
            )
        self._check_attrs(node)
        known = {*self.required, *self.optional}
        unknown, missing = sorted(set(node.tensors) - known), sorted(set(self.required) - set(node.tensors))
        need(not unknown and not missing, f"tensors {sorted(node.tensors)}, expected {sorted(known)}")
        need((node.codes is not None) == self.weighted, "a weight belongs to weighted operations, and to all of them")
        for name, tensor in node.tensors.items():
            if name in self.indices:
                check_index(name, tensor)
            elif name in self.orders:
                need(tensor.dtype == np.int64 and tensor.ndim == 1, f"{name} is not a list of channels")
            else:
                check_floats(name, tensor)
        return tuple(int(n) for n in self.shape(node, inputs))

    def _check_attrs(self, node: Node) -> None:
        need(node.attrs.keys() == self.attrs.keys(), f"attributes {sorted(node.attrs)}, expected {sorted(self.attrs)}")
        for name, default in self.attrs.items():
            value, least = node.attrs[name], self.least.get(name, 1)
            if isinstance(default, tuple):
                good = isinstance(value, tuple) and len(value) == 2 and all(_is_int(v, least) for v in value)
            elif isinstance(default, bool):
                good = isinstance(value, bool)
            elif isinstance(default, float):
                good = isinstance(value, float) and math.isfinite(value)
            else:
                good = _is_int(value, least)
            need(good, f"{name}={value!r}, expected something like {default!r}")

    def shape(self, node: Node, inputs: list[Shape]) -> Shape:
        """Shape rule; attributes, arity and tensors' types were checked. ValueError for what does not fit."""
        return inputs[0]

    def run(self, node: Node, t: Tensors, *x: Tensor) -> Tensor:
        """Reference execution on [N, *shape] fp32; `t`: the node's tensors, with `weight` where it has codes."""
        raise NotImplementedError

    def macs(self, node: Node, output: Shape) -> int:
        """Multiply-accumulates of one image, of what is stored; 0 for all but weighted operations."""
        return 0

    # -- from torch ----------------------------------------------------------------------------------------------------

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        """The node's attributes for a torch module."""
        return {}

    def arrays(self, module: nn.Module) -> Tensors:
        """fp32 tensors [channels] of a torch module, before channels are cut."""
        return {}


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LIMIT


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """A number for both axes, or one for each."""
    return (value, value) if isinstance(value, int) else tuple(value)


def windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many windows fit along an axis; 0 where none does."""
    reach = size + 2 * padding - (dilation * (kernel - 1) + 1)
    return reach // stride + 1 if reach >= 0 else 0
