"""The table of operations: one class each, in the files below; importing this package fills `OPS`."""

from sparsign.packing.ops import joining, pointwise, pooling, weighted
from sparsign.packing.ops.base import OPS, Node, Op

__all__ = ["OPS", "Node", "Op", "joining", "pointwise", "pooling", "weighted"]
