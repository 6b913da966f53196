"""A packed model as a JSON header and the bytes of its arrays; `packing/FORMAT.md` describes both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsign.packing.codecs import CODECS, STREAMS
from sparsign.packing.coding import coders
from sparsign.packing.encode import entropy_bits
from sparsign.packing.floats import FLOAT_CODECS, PRECISIONS, precision, to_bits
from sparsign.packing.layouts import Dense
from sparsign.packing.spec import OPS, LayerCodes, Node, PackedModel
from sparsign.packing.values import Floats

Entry = list[Any]
SLOW_CODES = 1 << 19
"""Most codes that are coded by a model where the coder was not compiled (half a minute)."""
ENTRY = 8
"""Bytes that the entry of a section of its own takes in a deflated header, about."""
QUICK, WORTH = 1 << 20, 0.99
"""Codes that a model decodes in less than 0.1 s: for more it has to save 1 %, or a file opens slowly for nothing."""


@dataclass
class Integers:
    """An integer array on its way into the file.

    Attributes:
        array: the numbers as they lie in the weight (or a flat list of flags).
        kernels: bool [rows, cols]: the kernels of `array` that are stored; None for all.
        levels: listed in a section's entry where the reader cannot know them.
        entry: the header's, filled in once it is decided: [] in the stream, [codec, bytes, ...] for a section.
    """

    array: np.ndarray
    kernels: np.ndarray | None = None
    levels: np.ndarray | None = None
    entry: Entry = field(default_factory=list)

    def section(self) -> tuple[Entry, bytes]:
        """The shortest coding on its own."""
        stored = self.array if self.kernels is None else self.array[self.kernels]
        levels = np.arange(2) if self.levels is None else self.levels
        coded = {name: codec.encode(stored, levels) for name, codec in CODECS.items()}
        name = min(coded, key=lambda name: len(coded[name][1]))
        parameters, data = coded[name]
        listed = [] if self.levels is None else [self.levels.tolist()]
        return [name, len(data), *listed, *parameters], data


@dataclass
class Payload:
    """The arrays of a file as they are added: floats to a pool per precision, integers to a list."""

    structure: list[Integers] = field(default_factory=list)
    codes: list[Integers] = field(default_factory=list)
    pools: dict[str, list[np.ndarray]] = field(default_factory=lambda: {kind: [] for kind in PRECISIONS})

    def floats(self, array: np.ndarray) -> Entry:
        """[precision, *shape]."""
        kind = precision(array)
        self.pools[kind].append(to_bits(array, kind))
        return [kind, *array.shape]

    def flags(self, flags: np.ndarray) -> Entry:
        """The entry of an array of booleans."""
        self.structure.append(Integers(flags.astype(np.uint8)))
        return self.structure[-1].entry

    def close(self) -> tuple[list[Entry], list[Entry], bytes]:
        """(entries of the pools, entries of the two streams, all bytes)."""
        entries, blobs = [], []
        for kind, arrays in self.pools.items():
            if arrays:
                bits = np.concatenate(arrays)
                coded = {name: codec.encode(bits, kind) for name, codec in FLOAT_CODECS.items()}
                name = min(coded, key=lambda name: len(coded[name]))
                entries.append([kind, name, len(coded[name]), len(bits)])
                blobs.append(coded[name])
        streams = []
        for arrays in (self.structure, self.codes):
            stream, data = _code_together(arrays)
            streams.append(stream)
            blobs.append(data)
        return entries, streams, b"".join(blobs)


def _code_together(arrays: list[Integers]) -> tuple[Entry, bytes]:
    """(entry of the stream, its bytes and those of the sections), whichever is shortest: all arrays apart, all in the
    stream, or those apart that gain nothing by a model."""
    apart = [array.section() for array in arrays]
    everything = list(range(len(arrays)))

    def total(data: bytes, chosen: list[int]) -> int:
        return len(data) + sum(len(apart[k][1]) + ENTRY for k in everything if k not in chosen)

    best: tuple[int, Entry, bytes, list[int]] = (total(b"", []), [], b"", [])
    affordable = coders.COMPILED or sum(array.array.size for array in arrays) <= SLOW_CODES
    for name, stream in STREAMS.items() if affordable else ():
        gaining = [k for k, array in enumerate(arrays) if not _noise(array, len(apart[k][1]), stream)]
        for chosen in [gaining] if gaining == everything else [gaining, everything]:
            if chosen:
                data = stream.encode([arrays[k].array for k in chosen], [arrays[k].kernels for k in chosen])
                length = total(data, chosen)
                if length < best[0] and (
                    length < WORTH * best[0] or sum(arrays[k].array.size for k in chosen) <= QUICK
                ):
                    best = length, [name, len(data)], data, chosen
    _, entry, data, chosen = best
    for k, array in enumerate(arrays):
        if k not in chosen:
            array.entry[:] = apart[k][0]
    return entry, data + b"".join(blob for k, (_, blob) in enumerate(apart) if k not in chosen)


def _noise(integers: Integers, alone: int, stream: Any) -> bool:
    """Whether a large array is as long under a model as on its own: binary weights trained from scratch."""
    bits = entropy_bits(integers.array if integers.kernels is None else integers.array[integers.kernels])
    if alone < 256 or bits < 0.99 * 8 * alone:
        return False
    return len(stream.encode([integers.array], [integers.kernels])) >= alone


def to_header(packed: PackedModel) -> tuple[dict[str, Any], bytes]:
    """(header, payload) of a valid packed model. What stands at its default is left out."""
    payload, position = Payload(), {node.name: k for k, node in enumerate(packed.nodes)}
    nodes = [_node(node, k, position, payload) for k, node in enumerate(packed.nodes)]
    header: dict[str, Any] = {"input": list(packed.input_shape), "nodes": nodes, "meta": packed.meta}
    if position[packed.output] != len(nodes) - 1:
        header["output"] = position[packed.output]
    header["pools"], header["streams"], data = payload.close()
    return header, data


def _node(node: Node, place: int, position: dict[str, int], payload: Payload) -> Entry:
    """[op, name, inputs as distances back, attributes, tensors, weight], cut behind the last that is no default."""
    op = OPS[node.op]
    attrs = {name: value for name, value in node.attrs.items() if value != op.attrs[name]}
    tensors: dict[str, Any] = {}
    for name, tensor in node.tensors.items():
        if name in op.indices:
            tensors[name] = [int(tensor[-1]) + 1, payload.flags(_members(tensor, int(tensor[-1]) + 1))]
        elif name in op.orders:
            tensors[name] = tensor.tolist()
        else:
            tensors[name] = payload.floats(tensor)
    weight = {} if node.codes is None else _weight(node.codes, payload)
    inputs = [place - position[name] for name in node.inputs]
    record = [node.op, node.name, [] if inputs == [1] else inputs, attrs, tensors, weight]
    while not record[-1]:
        record.pop()
    return record


def _members(index: np.ndarray, size: int) -> np.ndarray:
    members = np.zeros(size, bool)
    members[index] = True
    return members


def _weight(layer: LayerCodes, payload: Payload) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(layer.full_shape)}
    for name, index, full in (("rows", layer.rows, layer.full_shape[0]), ("cols", layer.cols, layer.full_shape[1])):
        if len(index) < full:
            record[name] = [len(index), payload.flags(_members(index, full))]
    if not isinstance(layer.layout, Dense):
        record["layout"] = layer.layout.name
        if layer.layout.mask is not None:
            record["mask"] = payload.flags(layer.layout.mask)
        if getattr(layer.layout, "width", 1) != 1:
            record["width"] = layer.layout.width
    if isinstance(layer.values, Floats):
        record["codes"] = payload.floats(layer.codes)[0]
        return record
    levels = np.unique(layer.codes).astype(np.int64) if layer.codes.size else np.zeros(1, np.int64)
    payload.codes.append(Integers(layer.dense_codes(), layer.layout.kernels(), levels))
    record["codes"] = payload.codes[-1].entry
    record["values"] = [layer.values.name]
    for value in vars(layer.values).values():
        record["values"].append(payload.floats(value) if isinstance(value, np.ndarray) else value)
    return record
