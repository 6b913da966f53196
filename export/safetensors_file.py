"""A packed network's decoded arrays as safetensors, with its graph in the metadata."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import load, save

from sparsign.export import Content, Options, facts
from sparsign.packing.spec import Node, PackedModel

RENAMED = {"affine": {"scale": "weight", "shift": "bias"}, "prelu": {"slope": "weight"}}
"""What torch's own modules call a node's arrays."""


def content(packed: PackedModel, options: Options) -> Content:
    """See `export.convert`. Arrays are fp32 of the cut shapes (and int64 channel indices), as `<module>.<parameter>`.

    Metadata, JSON each: `input`, `graph` (nodes in order: op, name, inputs, attrs; `affine` is weight * x + bias),
    `layers` (by weight: how its codes became numbers, its layout, the shape before the cut, and the kept rows and
    columns where some are gone), and `model`, `dataset` of the packed file.
    """
    arrays = {
        f"{node.name}.{RENAMED.get(node.op, {}).get(key, key)}": array
        for node in packed.nodes
        for key, array in node.tensors.items()
    }
    arrays |= {f"{name}.weight": node.codes.weight() for name, node in packed.layers().items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    graph = [{"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": n.attrs} for n in packed.nodes]
    layers = {f"{name}.weight": _left(node) for name, node in packed.layers().items()}
    own = {"input": packed.input_shape, "graph": graph, "layers": layers}
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in own.items()}, **facts(packed)}
    data = save(arrays, metadata)
    if not options.check:
        return Content(data, "fp32, not checked")
    again = load(data)
    if again.keys() != arrays.keys() or not all(np.array_equal(again[name], arrays[name]) for name in arrays):
        raise ValueError("the safetensors file does not hold what was put in")
    return Content(data, f"fp32; {len(arrays)} arrays read back, error 0")


def _left(node: Node) -> dict[str, object]:
    codes = node.codes
    kept = {"rows": codes.rows, "cols": codes.cols}
    gone = [len(index) < n for index, n in zip(kept.values(), codes.full_shape[:2], strict=True)]
    kept = {name: index.tolist() for (name, index), some in zip(kept.items(), gone, strict=True) if some}
    return {"values": codes.values.name, "layout": codes.layout.name, "full_shape": codes.full_shape, **kept}
