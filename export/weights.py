"""How a weight stands in an ONNX file: decoded, or as integer codes that DequantizeLinear decodes."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from sparsign.export.graph import Graph
from sparsign.packing.ops import Node


@dataclass(frozen=True)
class Kind:
    """A way to write weights, and the first opset that knows it, with its version of the file format."""

    dtype: type
    opset: int = 17
    ir_version: int = 8


WEIGHTS = {
    "float": Kind(np.float32),
    "int8-dequantize": Kind(np.int8),
    "int4-dequantize": Kind(ml_dtypes.int4, 21, 10),
    "int2-dequantize": Kind(ml_dtypes.int2, 25, 13),
}


def weight(g: Graph, node: Node, kind: str) -> str:
    """Name of the fp32 weight of a node in the graph, of the cut shape.

    Raises:
        ValueError: integers for a coded layer whose numbers are not one scale per row times a code of so few bits.
    """
    if kind == "float" or not node.codes.coded:
        return g.parameter("weight", node.codes.weight())
    dtype, codes, scale = WEIGHTS[kind].dtype, node.codes.dense_codes(), row_scale(node)
    least, most = int(codes.min(initial=0)), int(codes.max(initial=0))
    limits = ml_dtypes.iinfo(dtype)
    if scale is None:
        what = f"its values ({node.codes.values.name}) are no scale per row times a code"
    elif not limits.min <= least <= most <= limits.max:
        what = f"its codes from {least} to {most} lie outside [{limits.min}, {limits.max}]"
    else:
        return g.add("DequantizeLinear", g.parameter("codes", codes.astype(dtype)), g.parameter("scale", scale), axis=0)
    raise ValueError(f"--weights {kind}: layer {node.name}: {what}, try float")


def row_scale(node: Node) -> np.ndarray | None:
    """fp32 [] or [rows]: what times the codes is the weight, to the bit; None where nothing is."""
    signed = node.codes.values.signed_scales(len(node.codes.rows))
    if signed is None or not np.array_equal(*signed):
        return None
    scale = signed[0]
    return scale[0] if (scale == scale[0]).all() else scale
