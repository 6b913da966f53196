"""What is left of a network after training: the narrow waist that the file, the engine and the accounting share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class LayerCodes:
    """The weight of one conv or linear layer with its removed rows and columns gone.

    Attributes:
        full_shape: [out, in / groups, kh, kw] or [out, in] before cutting.
        rows, cols: int64, increasing: the kept indices into the first two axes of `full_shape`.
        codes: int8 or int16 [rows, cols, kh, kw] ([rows, cols] for linear), or None for a float layer.
        scale: fp32, 0-dim or [rows]; weight == scale * codes exactly.
        negative_scale: fp32 of scale's shape: what multiplies negative codes where the two signs differ (TTQ).
        floats: fp32 weight of the codes' shape where `codes` is None.
        gather: int64 [rows, D], increasing in each row: filter r reads kept columns gather[r] and nothing else (the
            kernel-level masks of STQ-B); codes are then [rows, D, kh, kw].
    """

    full_shape: tuple[int, ...]
    rows: np.ndarray
    cols: np.ndarray
    codes: np.ndarray | None = None
    scale: np.ndarray | None = None
    negative_scale: np.ndarray | None = None
    floats: np.ndarray | None = None
    gather: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the cut weight, gathered columns spread out: [rows, cols, kh, kw] or [rows, cols]."""
        return (len(self.rows), len(self.cols), *self.full_shape[2:])

    def dense_codes(self) -> np.ndarray:
        """Integer codes of `shape`: gathered codes in their columns, 0 elsewhere. Only for coded layers."""
        if self.gather is None:
            return self.codes
        dense = np.zeros(self.shape, self.codes.dtype)
        dense[np.arange(len(self.rows))[:, None], self.gather] = self.codes
        return dense

    def kernel_mask(self) -> np.ndarray:
        """Bool [rows, cols]: the gathered kernels, or those with a nonzero code. Only for coded layers."""
        if self.gather is None:
            return self.codes.reshape(*self.codes.shape[:2], -1).any(axis=2)
        mask = np.zeros(self.shape[:2], bool)
        mask[np.arange(len(self.rows))[:, None], self.gather] = True
        return mask

    def weight(self) -> np.ndarray:
        """fp32 weight of `shape`: exactly scale * codes, or the floats."""
        if self.codes is None:
            return self.floats
        return scaled(self.dense_codes(), self.scale, self.negative_scale)


def scaled(codes: np.ndarray, scale: np.ndarray, negative_scale: np.ndarray | None = None) -> np.ndarray:
    """fp32 scale * codes, one rounding; scales are 0-dim or [rows]."""
    values = codes.astype(np.float32)
    spread = (1,) * (codes.ndim - 1)
    positive = scale.reshape(scale.shape + spread) * values if scale.ndim else scale * values
    if negative_scale is None:
        return positive
    return np.where(codes > 0, positive, scaled(codes, negative_scale))


@dataclass
class Node:
    """One operation. `inputs` name earlier nodes; every attribute of ATTRS[op] is present in `attrs`.

    tensors: `bias` fp32 [rows] (conv, linear; optional), `scale` and `shift` fp32 [channels] (affine: BN in eval
    mode, or a learned shift with scale 1), `slope` fp32 [channels] (prelu), `index` int64 (select: channels taken),
    `index0` and `index1` int64 (add: where the operands' channels go; absent where the operand covers all). A `layer`
    is a module of a network without a graph: it has no inputs, its tensors are fp32 under their names in the state
    dict, `codes` its weight if it is a conv or linear layer.
    """

    op: str
    name: str
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    codes: LayerCodes | None = None

    def __post_init__(self) -> None:
        self.attrs = {**ATTRS.get(self.op, {}), **self.attrs}

    @property
    def is_conv(self) -> bool:
        """Whether the node has the weight of a conv layer."""
        return self.codes is not None and len(self.codes.full_shape) == 4


@dataclass
class PackedModel:
    """A network as nodes in topological order. Images are [N, *input_shape], fp32, normalised.

    Without a graph (see `packing.layers`) every node is a `layer`, input_shape is () and output None.

    `meta` is a plain JSON object. Its key `original`, written by `to_packed`, holds `parameters` (of the uncut
    network) and `dropped`: [name, full shape, coded] of layers of which nothing is left.
    """

    nodes: list[Node]
    input_shape: tuple[int, ...]
    output: str | None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def has_graph(self) -> bool:
        """Whether the nodes say how to run the network."""
        return self.output is not None

    def layers(self) -> dict[str, Node]:
        """The nodes with the weight of a conv or linear layer, by name, in order."""
        return {node.name: node for node in self.nodes if node.codes is not None}

    def validate(self) -> dict[str, tuple[int, ...]]:
        """Output shape of every node, without the batch dimension.

        Raises:
            ValueError: anything that would not run: unknown operations, wrong attributes, tensors that do not fit.
        """
        from sparsign.packing.validation import (
            infer_shapes,  # the rules are long; the data types stay readable without them
        )

        return infer_shapes(self)


PAIR = (1, 1)
ATTRS: dict[str, dict[str, Any]] = {
    "input": {},
    "conv": {"stride": PAIR, "padding": (0, 0), "dilation": PAIR, "groups": 1},
    "linear": {},
    "affine": {},
    "relu": {},
    "prelu": {},
    "relu6": {},
    "hardtanh": {"min": -1.0, "max": 1.0},
    "sign": {},
    "maxpool": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": PAIR, "ceil_mode": False},
    "avgpool": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": False, "count_include_pad": True},
    "globalavgpool": {},
    "add": {"channels": 0},
    "cat": {},
    "flatten": {},
    "pad_shortcut": {"stride": 1, "before": 0, "after": 0},
    "select": {},
    "layer": {},
}
"""Every operation with its attributes' defaults. `add` of operands without index has channels 0."""
