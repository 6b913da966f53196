"""An ONNX graph while it grows: operations and constants with names that are nobody else's."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Graph:
    """Nodes in topological order and initializers, under names that start with that of the packed network's node."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.prefix = ""
        self._taken: set[str] = set()
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def name(self, wanted: str) -> str:
        """`wanted`, or something like it where that is taken."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def parameter(self, name: str, array: np.ndarray) -> str:
        """An array of the network's, as `<node>.<name>`."""
        found = self.name(f"{self.prefix}.{name}")
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), found))
        return found

    def constant(self, numbers: object, dtype: type = np.float32) -> str:
        """Numbers that belong to a spelling; equal ones are kept once."""
        array = np.array(numbers, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.name(f"constant.{len(self._shared)}")
            self.initializers.append(numpy_helper.from_array(array, self._shared[key]))
        return self._shared[key]

    def integers(self, *numbers: int) -> str:
        """int64 [n]: axes, pads, sizes."""
        return self.constant(numbers, np.int64)

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """One operation of one output, whose name it returns."""
        output = self.name(f"{self.prefix}/{op}")
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output
