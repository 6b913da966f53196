"""Does a packed model hang together? Shapes are inferred node by node; the first thing that does not fit is named."""

from __future__ import annotations

import math

import numpy as np

from sparsign.packing.spec import ATTRS, LayerCodes, Node, PackedModel

Shape = tuple[int, ...]

LIMIT = 1 << 16
"""Largest size, stride, kernel or channel count that is believed."""
ELEMENTS = 1 << 28
"""Largest activation, in values per image, that is believed."""


def infer_shapes(packed: PackedModel) -> dict[str, Shape]:
    """Output shape of every node (no batch dimension, () for a `layer`); ValueError naming the first misfit."""
    shapes: dict[str, Shape] = {}
    shape, graph = packed.input_shape, packed.has_graph
    if graph:
        need(len(shape) == 3 and all(1 <= n <= LIMIT for n in shape), f"input shape {list(shape)}, expected [C, H, W]")
    else:
        need(shape == (), f"input shape {list(shape)} without an output, expected neither or both")
    for position, node in enumerate(packed.nodes):
        try:
            need(node.name not in shapes, "its name is taken")
            need(node.op in ATTRS, f"unknown operation {node.op!r}")
            need((node.op == "layer") != graph, "expected layers alone, or none of them")
            need((node.op == "input") == (position == 0 and graph), "expected exactly one input, as first node")
            missing = [name for name in node.inputs if name not in shapes]
            need(not missing, f"reads {missing[:1]} which no earlier node makes")
            _check_attrs(node, ATTRS[node.op])
            _check_tensors(node)
            shape = packed.input_shape if node.op == "input" else _shape(node, [shapes[n] for n in node.inputs])
            need(all(n >= 1 for n in shape), f"its output would have shape {list(shape)}")
            need(math.prod(shape) <= ELEMENTS, f"its output {list(shape)} is too large")
        except ValueError as error:
            raise ValueError(f"node {node.name!r} ({node.op}): {error}") from None
        shapes[node.name] = tuple(int(n) for n in shape)
    _check_original(packed.meta.get("original", {}))
    need(not graph or packed.output in shapes, f"output {packed.output!r} is no node")
    need(not graph or len(shapes[packed.output]) == 1, f"output {packed.output!r}: expected logits [classes]")
    return shapes


def _check_original(original: object) -> None:
    known = isinstance(original, dict) and set(original) <= {"parameters", "dropped"}
    need(known, "meta.original is not {parameters, dropped}")
    need(isinstance(original.get("parameters", 0), int), "meta.original.parameters is not a number")
    dropped = original.get("dropped", [])
    need(isinstance(dropped, list), "meta.original.dropped is not a list")
    for entry in dropped:
        good = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[1], list)
        need(good and all(isinstance(n, int) and n > 0 for n in entry[1]), f"meta.original.dropped: {entry!r:.80}")


def need(condition: bool, problem: str) -> None:
    """ValueError(problem) unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def _check_attrs(node: Node, defaults: dict) -> None:
    need(set(node.attrs) == set(defaults), f"attributes {sorted(node.attrs)}, expected {sorted(defaults)}")
    for name, default in defaults.items():
        value = node.attrs[name]
        least = 0 if name in ("padding", "before", "after", "channels") else 1
        if isinstance(default, tuple):
            good = isinstance(value, tuple) and len(value) == 2 and all(_is_int(v, least) for v in value)
        elif isinstance(default, bool):
            good = isinstance(value, bool)
        elif isinstance(default, float):
            good = isinstance(value, float) and math.isfinite(value)
        else:
            good = _is_int(value, least)
        need(good, f"{name}={value!r}, expected something like {default!r}")


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LIMIT


TENSORS = {
    "conv": ("bias",),
    "linear": ("bias",),
    "affine": ("scale", "shift"),
    "prelu": ("slope",),
    "select": ("index",),
}


def _check_tensors(node: Node) -> None:
    if node.op == "layer":
        _check_plain_layer(node)
        return
    allowed = ("index0", "index1") if node.op == "add" else TENSORS.get(node.op, ())
    unknown = sorted(set(node.tensors) - set(allowed))
    need(not unknown, f"unknown tensors {unknown}")
    if node.op in ("affine", "prelu", "select"):
        need(set(node.tensors) == set(allowed), f"expected tensors {list(allowed)}")
    need((node.codes is not None) == (node.op in ("conv", "linear")), "a weight belongs to conv and linear alone")
    for name, tensor in node.tensors.items():
        if name.startswith("index"):
            check_index(name, tensor)
        else:
            _check_floats(name, tensor)


def _check_plain_layer(node: Node) -> None:
    need(bool(node.tensors) or node.codes is not None, "holds nothing")
    for name, tensor in node.tensors.items():
        _check_floats(name, tensor)
    if node.codes is not None:
        need("weight" not in node.tensors, "has two weights")
        check_layer(node.codes, dims=4 if node.is_conv else 2)


def check_index(name: str, index: np.ndarray, limit: int | None = None) -> None:
    """ValueError unless `index` is int64 [n], n >= 1, strictly increasing, within [0, limit)."""
    good = index.dtype == np.int64 and index.ndim == 1 and index.size and index[0] >= 0 and (np.diff(index) > 0).all()
    need(bool(good), f"{name} is not an increasing list of indices")
    need(limit is None or index[-1] < limit, f"{name} goes up to {index[-1]}, expected less than {limit}")


def _check_floats(name: str, tensor: np.ndarray, shape: Shape | None = None) -> None:
    need(tensor.dtype == np.float32, f"{name} is {tensor.dtype}, expected float32")
    need(shape is None or tensor.shape == shape, f"{name} has shape {list(tensor.shape)}, expected {list(shape or ())}")
    need(bool(np.isfinite(tensor).all()), f"{name} holds NaN or infinity")


def _shape(node: Node, inputs: list[Shape]) -> Shape:
    op, attrs, tensors = node.op, node.attrs, node.tensors
    counts = {"add": (2,), "cat": range(1, LIMIT), "layer": (0,)}
    need(len(inputs) in counts.get(op, (1,)), f"has {len(inputs)} inputs")
    if op == "layer":
        return ()
    x = inputs[0]
    spatial = op in ("conv", "maxpool", "avgpool", "globalavgpool", "pad_shortcut")
    need(not spatial or len(x) == 3, f"reads shape {list(x)}, expected [C, H, W]")
    if op in ("conv", "linear"):
        return _weighted_shape(node, x)
    if op in ("affine", "prelu"):
        for name, tensor in tensors.items():
            _check_floats(name, tensor, (x[0],))
    elif op == "hardtanh":
        need(attrs["min"] <= attrs["max"], "min is above max")
    elif op == "select":
        check_index("index", tensors["index"], x[0])
        return (len(tensors["index"]), *x[1:])
    elif op in ("maxpool", "avgpool"):
        return (x[0], *_pooled(node, x))
    elif op == "globalavgpool":
        return (x[0], 1, 1)
    elif op == "flatten":
        return (math.prod(x),)
    elif op == "cat":
        need(all(s[1:] == x[1:] for s in inputs), f"inputs {[list(s) for s in inputs]} differ beyond their channels")
        return (sum(s[0] for s in inputs), *x[1:])
    elif op == "pad_shortcut":
        return (attrs["before"] + x[0] + attrs["after"], *(-(-n // attrs["stride"]) for n in x[1:]))
    elif op == "add":
        return _add_shape(node, inputs)
    return x


def _add_shape(node: Node, inputs: list[Shape]) -> Shape:
    need(inputs[0][1:] == inputs[1][1:], f"inputs {[list(s) for s in inputs]} differ beyond their channels")
    channels = node.attrs["channels"] if node.tensors else inputs[0][0]
    for k, shape in enumerate(inputs):
        index = node.tensors.get(f"index{k}")
        if index is not None:
            check_index(f"index{k}", index, channels)
        covered = channels if index is None else len(index)
        need(shape[0] == covered, f"input {k} has {shape[0]} channels, expected {covered}")
    return (channels, *inputs[0][1:])


def _pooled(node: Node, x: Shape) -> list[int]:
    attrs, sizes = node.attrs, []
    for axis in (0, 1):
        kernel, stride, padding = attrs["kernel"][axis], attrs["stride"][axis], attrs["padding"][axis]
        span = attrs.get("dilation", (1, 1))[axis] * (kernel - 1) + 1
        need(2 * padding <= kernel, f"padding {padding} is more than half of kernel {kernel}")
        reach = x[1 + axis] + 2 * padding - span
        size = (-(-reach // stride) if attrs["ceil_mode"] else reach // stride) + 1
        if attrs["ceil_mode"] and (size - 1) * stride >= x[1 + axis] + padding:  # no window starts in the padding
            size -= 1
        sizes.append(size if reach >= 0 else 0)
    return sizes


def _weighted_shape(node: Node, x: Shape) -> Shape:
    layer, attrs = node.codes, node.attrs
    check_layer(layer, dims=4 if node.op == "conv" else 2)
    rows, cols = layer.shape[:2]
    if "bias" in node.tensors:
        _check_floats("bias", node.tensors["bias"], (rows,))
    if node.op == "linear":
        need(x == (cols,), f"reads shape {list(x)}, expected [{cols}]")
        return (rows,)
    groups = attrs["groups"]
    need(x[0] == cols * groups, f"reads {x[0]} channels, expected {cols * groups}")
    need(rows % groups == 0, f"{rows} rows do not divide into {groups} groups")
    need(groups == 1 or layer.gather is None, "gathered columns and groups exclude each other")
    sizes = []
    for axis in (0, 1):
        span = attrs["dilation"][axis] * (layer.full_shape[2 + axis] - 1) + 1
        reach = x[1 + axis] + 2 * attrs["padding"][axis] - span
        sizes.append(reach // attrs["stride"][axis] + 1 if reach >= 0 else 0)
    return (rows, *sizes)


def check_layer(layer: LayerCodes, dims: int) -> None:
    """ValueError unless a layer's arrays agree with each other; `dims` is 4 for conv, 2 for linear."""
    full = layer.full_shape
    good = len(full) == dims and all(1 <= n <= ELEMENTS for n in full)
    need(good, f"weight of shape {list(full)}, expected {dims} sizes")
    check_index("kept rows", layer.rows, full[0])
    check_index("kept columns", layer.cols, full[1])
    shape = layer.shape
    if layer.codes is None:
        need(layer.floats is not None, "has neither codes nor a float weight")
        need(layer.scale is layer.negative_scale is layer.gather is None, "a float weight has no scale")
        _check_floats("weight", layer.floats, shape)
        return
    need(layer.floats is None, "has both codes and a float weight")
    need(layer.codes.dtype in (np.int8, np.int16), f"codes are {layer.codes.dtype}, expected int8 or int16")
    need(layer.codes.min(initial=0) > np.iinfo(np.int16).min, "a code lies outside [-32767, 32767]")
    if layer.gather is not None:
        gather = layer.gather
        need(gather.dtype == np.int64 and gather.ndim == 2 and gather.shape[1] >= 1, "gather is not an index [rows, D]")
        need(gather.min() >= 0 and gather.max() < shape[1], f"gather points outside the {shape[1]} kept columns")
        need(bool((np.diff(gather, axis=1) > 0).all()), "gather does not increase along its rows")
        need(len(gather) == shape[0], f"gather has {len(gather)} rows, expected {shape[0]}")
        shape = (shape[0], gather.shape[1], *shape[2:])
    need(layer.codes.shape == shape, f"codes have shape {list(layer.codes.shape)}, expected {list(shape)}")
    need(layer.scale is not None and layer.scale.shape in ((), (shape[0],)), f"scale is not 0-dim or [{shape[0]}]")
    _check_floats("scale", layer.scale)
    if layer.negative_scale is not None:
        _check_floats("negative scale", layer.negative_scale, layer.scale.shape)
