"""A packed model as a JSON header and the byte sections it refers to; `packing.file` tells the layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsign.packing.codecs import CODECS, deflate
from sparsign.packing.spec import ATTRS, LayerCodes, PackedModel

Section = tuple[list[Any], bytes]
"""A section's entry in the header and its bytes."""


def _shortest(kind: str, candidates: dict[str, bytes], *rest: Any) -> Section:
    codec = min(candidates, key=lambda name: len(candidates[name]))
    return [kind, codec, len(candidates[codec]), *rest], candidates[codec]


def _floats(array: np.ndarray) -> Section:
    raw = array.astype("<f4").tobytes()
    return _shortest("f", {"raw": raw, "deflate": deflate(raw)}, list(array.shape))


def _bitmap(members: np.ndarray) -> Section:
    symbols = members.ravel().astype(np.uint16)
    return _shortest("b", {name: codec.encode(symbols, 2) for name, codec in CODECS.items()}, members.size)


def _integers(values: np.ndarray) -> Section:
    least = int(values.min(initial=0))
    offsets = values.ravel().astype(np.int64) - least
    counts = np.bincount(offsets, minlength=1)
    levels = np.flatnonzero(counts)
    symbols = (np.cumsum(counts > 0) - 1).astype(np.uint16)[offsets]
    encoded = {name: codec.encode(symbols, max(1, len(levels))) for name, codec in CODECS.items()}
    return _shortest("c", encoded, values.size, (levels + least).tolist() or [0])


class _Sections:
    def __init__(self) -> None:
        self.table: list[list[Any]] = []
        self.blobs: list[bytes] = []

    def add(self, section: Section) -> int:
        """The section's position."""
        entry, blob = section
        self.table.append(entry)
        self.blobs.append(blob)
        return len(self.table) - 1


def to_header(packed: PackedModel) -> tuple[dict[str, Any], list[bytes]]:
    """(header, sections) of a valid packed model. Attributes at their defaults are left out."""
    sections, position = _Sections(), {}
    nodes = []
    for node in packed.nodes:
        position[node.name] = len(nodes)
        attrs = {name: value for name, value in node.attrs.items() if value != ATTRS[node.op][name]}
        tensors = {}
        for name, tensor in node.tensors.items():
            index = tensor.dtype == np.int64
            section = _bitmap(_members(tensor, tensor[-1] + 1)) if index else _floats(tensor)
            tensors[name] = sections.add(section)
        codes = None if node.codes is None else _dump_layer(node.codes, sections)
        nodes.append([node.op, node.name, [position[name] for name in node.inputs], attrs, tensors, codes])
    header = {
        "nodes": nodes,
        "input": list(packed.input_shape),
        "output": position.get(packed.output),
        "meta": packed.meta,
        "sections": sections.table,
    }
    return header, sections.blobs


def _members(index: np.ndarray, size: int) -> np.ndarray:
    members = np.zeros(size, bool)
    members[index] = True
    return members


def _dump_layer(layer: LayerCodes, sections: _Sections) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(layer.full_shape)}
    for name, index, full in zip(("rows", "cols"), (layer.rows, layer.cols), layer.full_shape, strict=False):
        if len(index) < full:
            record[name] = sections.add(_bitmap(_members(index, full)))
    if layer.codes is None:
        return {**record, "floats": sections.add(_floats(layer.floats))}
    record["scale"] = sections.add(_floats(layer.scale))
    if layer.negative_scale is not None:
        record["negative"] = sections.add(_floats(layer.negative_scale))
    dense, mask = layer.dense_codes(), layer.kernel_mask()
    kernels = dense.reshape(*dense.shape[:2], -1)
    split = [_bitmap(mask), _integers(kernels[mask])]
    plain = _integers(dense)
    if layer.gather is not None or sum(len(blob) for _, blob in split) < len(plain[1]):
        record.update(zip(("kernels", "codes"), map(sections.add, split), strict=True))
        return {**record, "gather": 1} if layer.gather is not None else record
    return {**record, "codes": sections.add(plain)}
