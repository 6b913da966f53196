"""A packed model back from a JSON header and its sections, none of which is believed before it is checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsign.packing.codecs import CODECS, EXPANSION, MAX_LEVELS, inflate
from sparsign.packing.spec import LayerCodes, Node, PackedModel

MAX_ELEMENTS = 1 << 29
"""Most numbers a file may claim to hold."""


def from_header(header: dict[str, Any], data: memoryview) -> PackedModel:
    """The validated packed model. ValueError, KeyError, TypeError or IndexError for a header that makes no sense."""
    arrays = _load_sections(header["sections"], data)
    names = [str(record[1]) for record in header["nodes"]]
    nodes = [_load_node(record, names[:k], arrays) for k, record in enumerate(header["nodes"])]
    if not isinstance(header["meta"], dict):
        raise ValueError("meta is not a JSON object")
    output = None if header["output"] is None else names[_size(header["output"])]
    packed = PackedModel(nodes, tuple(map(_size, header["input"])), output, header["meta"])
    packed.validate()
    return packed


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ELEMENTS:
        raise ValueError(f"{value!r} is not a size")
    return value


class _Arrays:
    """Decoded sections; one of the wrong kind is refused when asked for."""

    def __init__(self, arrays: list[tuple[str, np.ndarray]]) -> None:
        self.arrays = arrays

    def get(self, kind: str, position: object) -> np.ndarray:
        found, array = self.arrays[_size(position)]
        if found != kind:
            raise ValueError(f"section {position} is of kind {found!r}, expected {kind!r}")
        return array


def _load_sections(table: list[list[Any]], data: memoryview) -> _Arrays:
    arrays, offset, budget = [], 0, MAX_ELEMENTS
    for kind, codec, length, *rest in table:
        blob = bytes(data[offset : offset + _size(length)])
        if len(blob) != length:
            raise ValueError(f"a section of {length} bytes at {offset} goes beyond the file's end")
        offset += length
        count = math.prod(map(_size, rest[0])) if kind == "f" else _size(rest[0])
        budget -= count
        if budget < 0 or count > 8 * EXPANSION * length:
            raise ValueError(f"a section of {length} bytes claims {count} numbers")
        if kind == "f":
            raw = {"raw": lambda b, n: b, "deflate": inflate}[codec](blob, 4 * count)
            arrays.append((kind, np.frombuffer(raw, "<f4").astype(np.float32).reshape(rest[0])))
        elif kind == "b":
            arrays.append((kind, CODECS[codec].decode(blob, count, 2).astype(bool)))
        elif kind == "c":
            levels = _levels(rest[1])
            arrays.append((kind, levels[CODECS[codec].decode(blob, count, len(levels))]))
        else:
            raise ValueError(f"unknown kind of section {kind!r}")
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes after the last section")
    return _Arrays(arrays)


def _levels(values: list[int]) -> np.ndarray:
    levels = np.array(values)
    good = levels.dtype == np.int64 and levels.ndim == 1 and 1 <= len(levels) <= MAX_LEVELS
    if not good or (np.diff(levels) <= 0).any() or abs(levels).max() > np.iinfo(np.int16).max:
        raise ValueError("levels of codes are not increasing 16-bit integers")
    return levels.astype(np.int8 if abs(levels).max() <= 127 else np.int16)


def _load_node(record: list[Any], earlier: list[str], arrays: _Arrays) -> Node:
    op, name, inputs, attrs, tensors, layer = record
    attrs = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
    loaded = {}
    for key, position in tensors.items():
        index = key.startswith("index") and op != "layer"
        loaded[key] = np.flatnonzero(arrays.get("b", position)) if index else arrays.get("f", position)
    sources = tuple(earlier[_size(k)] for k in inputs)
    codes = None if layer is None else _load_layer(layer, arrays)
    return Node(str(op), str(name), sources, attrs, loaded, codes)


def _load_layer(record: dict[str, Any], arrays: _Arrays) -> LayerCodes:
    full = tuple(map(_size, record["shape"]))
    coded = "floats" not in record
    values = arrays.get("c", record["codes"]) if coded else arrays.get("f", record["floats"])
    mask = arrays.get("b", record["kernels"]) if "kernels" in record else None
    most = values.size if mask is None else mask.size
    rows, cols = (_kept(record, name, size, most, arrays) for name, size in zip(("rows", "cols"), full, strict=False))
    shape = (len(rows), len(cols), *full[2:])
    if not coded:
        return LayerCodes(full, rows, cols, floats=values.reshape(shape))
    scale = arrays.get("f", record["scale"])
    negative = arrays.get("f", record["negative"]) if "negative" in record else None
    if mask is None:
        return LayerCodes(full, rows, cols, values.reshape(shape), scale, negative)
    mask = mask.reshape(shape[:2])
    kernels = values.reshape(int(mask.sum()), *full[2:])
    if "gather" in record:
        gather = np.nonzero(mask)[1].reshape(len(rows), -1)
        codes = kernels.reshape(*gather.shape, *full[2:])
        return LayerCodes(full, rows, cols, codes, scale, negative, gather=gather)
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a layer of shape {list(shape)} is too large")
    codes = np.zeros(shape, values.dtype)
    codes[mask] = kernels
    return LayerCodes(full, rows, cols, codes, scale, negative)


def _kept(record: dict[str, Any], name: str, size: int, most: int, arrays: _Arrays) -> np.ndarray:
    """Kept indices of `size` rows or columns; `most`: no more than this many can be there."""
    if name not in record:
        if size > most:
            raise ValueError(f"{name}: {size} in the layer's shape, at most {most} in the file")
        return np.arange(size)
    members = arrays.get("b", record[name])
    if len(members) != size:
        raise ValueError(f"{name}: {size} in the layer's shape, {len(members)} in their bitmap")
    return np.flatnonzero(members)
