"""How a weight stands in an ONNX file: decoded, or as integer codes that DequantizeLinear decodes."""

from __future__ import annotations

import numpy as np

from sparsign.export.graph import Graph
from sparsign.packing.ops import Node

WEIGHTS = ("float", "int8-dequantize")


def weight(g: Graph, node: Node, kind: str) -> str:
    """Name of the fp32 weight of a node in the graph, of the cut shape.

    Raises:
        ValueError: `int8-dequantize` for a coded layer whose numbers are not one scale per row times an int8 code.
    """
    if kind == "float" or not node.codes.coded:
        return g.parameter("weight", node.codes.weight())
    codes, scale = node.codes.dense_codes(), row_scale(node)
    if scale is None or codes.dtype != np.int8:
        values = f"values {node.codes.values.name}, codes {codes.dtype}"
        raise ValueError(f"--weights {kind}: layer {node.name} ({values}) is no scale per row times int8, try float")
    inputs = g.parameter("codes", codes), g.parameter("scale", scale)
    return g.add("DequantizeLinear", *inputs, axis=0)


def row_scale(node: Node) -> np.ndarray | None:
    """fp32 [] or [rows]: what times the codes is the weight, to the bit; None where nothing is."""
    signed = node.codes.values.signed_scales(len(node.codes.rows))
    if signed is None or not np.array_equal(*signed):
        return None
    scale = signed[0]
    return scale[0] if (scale == scale[0]).all() else scale
