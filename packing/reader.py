"""A packed model back from a JSON header and its payload, none of which is believed before it is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from sparsign.packing.codecs import CODECS, MAX_LEVELS, STREAMS, Shape
from sparsign.packing.encode import entropy_bits
from sparsign.packing.floats import FLOAT_CODECS, PRECISIONS, from_bits
from sparsign.packing.layouts import LAYOUTS, Layout
from sparsign.packing.limits import Limits, allow_more
from sparsign.packing.meta import check_meta
from sparsign.packing.spec import OPS, LayerCodes, Node, PackedModel
from sparsign.packing.values import VALUES, Floats, Values
from sparsign.packing.weight import MAX_SIZE, need

HEADER = {"input", "nodes", "meta", "pools", "streams"}
WEIGHT = {"shape", "rows", "cols", "layout", "mask", "width", "codes", "values"}
RANK = 4


def from_header(header: object, data: memoryview, limits: Limits, file_bytes: int) -> PackedModel:
    """The validated packed model, its `bytes_on_disk` filled in.

    Raises:
        ValueError, KeyError, TypeError or IndexError for a header that makes no sense or asks for too much.
    """
    need(isinstance(header, dict) and HEADER <= header.keys() <= HEADER | {"output"}, "the header is no such object")
    records = header["nodes"]
    need(isinstance(records, list) and 0 < len(records) <= limits.nodes, f"expected 1 to {limits.nodes} nodes")
    check_meta(header["meta"])
    payload = Payload(data, limits.decoded(file_bytes))
    for _, full, _ in header["meta"].get("original", {}).get("dropped", []):
        payload.spend(math.prod(full), 4)
    payload.read_pools(header["pools"])
    plans = [_plan(record, k, payload, limits) for k, record in enumerate(records)]
    structure_stream, codes_stream = header["streams"]
    payload.read_integers(structure_stream, [flags for plan in plans for flags in plan.structure()])
    for plan in plans:
        plan.lay_out(payload)
    payload.read_integers(codes_stream, [plan.codes for plan in plans if plan.codes is not None])
    nodes: list[Node] = []
    on_disk: dict[str, int] = {}
    for plan in plans:
        nodes.append(plan.node(nodes, payload))
        on_disk[plan.name] = payload.taken()
    payload.end()
    output = nodes[_size(header.get("output", len(nodes) - 1))].name
    packed = PackedModel(nodes, tuple(map(_size, _rank(header["input"]))), output, header["meta"])
    packed.validate()
    alive, allowed = limits.batch * packed.activation_bytes(), limits.activations(file_bytes)
    asked = f"asks for {alive} bytes of activations at batch {limits.batch}, expected at most {allowed}"
    need(alive <= allowed, f"{asked}; {allow_more('activation_mb', alive)}")
    macs = sum(packed.macs().values())
    need(macs <= limits.macs, f"asks for {macs} multiply-accumulates an image, expected at most {limits.macs}")
    packed.bytes_on_disk = {"header": file_bytes - sum(on_disk.values()), **on_disk}
    return packed


def _size(value: object) -> int:
    need(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31, f"{value!r:.40} is not a size"
    )
    return value


def _rank(shape: object) -> list[Any]:
    need(isinstance(shape, list) and len(shape) <= RANK, f"a shape of more than {RANK} sizes, or none")
    return shape


def _known(table: dict[str, Any], name: object, what: str) -> Any:
    need(isinstance(name, str) and name in table, f"this version does not know the {what} {name!r:.40}")
    return table[name]


@dataclass
class Integers:
    """An integer array that the file holds: in the stream (entry []) or in a section of its own."""

    entry: list[Any]
    shape: Shape
    kernels: np.ndarray | None = None
    levels: bool = False
    array: np.ndarray | None = None

    def __post_init__(self) -> None:
        need(isinstance(self.entry, list), "an entry of integers is no list")

    def flags(self) -> np.ndarray:
        """The array as bool."""
        need(int(self.array.min(initial=0)) >= 0 and int(self.array.max(initial=0)) <= 1, "flags are not 0 and 1")
        return self.array.astype(bool)


class Payload:
    """Hands out arrays in the file's order, each decoded once, within a budget of bytes."""

    def __init__(self, data: memoryview, budget: int) -> None:
        self.data, self.offset, self.budget, self.allowed = data, 0, budget, budget
        self.pools: dict[str, np.ndarray] = {}
        self.used: dict[str, int] = {}
        self.share: dict[str, float] = {}
        self.cost: dict[int, float] = {}
        self.bytes_taken = 0.0

    def spend(self, count: int, width: int) -> None:
        """ValueError where so many more numbers of `width` bytes are too many."""
        self.budget -= width * count
        need(self.budget >= 0, f"asks for more than {self.allowed} bytes of arrays; {allow_more('decoded_mb')}")

    def _bytes(self, size: object) -> bytes:
        start, self.offset = self.offset, self.offset + _size(size)
        need(self.offset <= len(self.data), f"a section of {size} bytes goes beyond the file's end")
        return bytes(self.data[start : self.offset])

    def read_pools(self, pools: object) -> None:
        """Decode the floats of all precisions."""
        need(isinstance(pools, list) and len(pools) <= len(PRECISIONS), "the pools are no such list")
        for kind, codec, size, count in pools:
            _known(PRECISIONS, kind, "precision")
            need(kind not in self.pools, f"two pools of {kind}")
            self.spend(_size(count), 4)
            decode = _known(FLOAT_CODECS, codec, "codec").decode
            numbers = from_bits(decode(self._bytes(size), count, kind), kind)
            self.pools[kind], self.share[kind], self.used[kind] = numbers, size / max(1, count), 0

    def read_integers(self, stream: list[Any], arrays: list[Integers]) -> None:
        """Decode one stream and the sections that belong to it."""
        for integers in arrays:
            self.spend(math.prod(integers.shape), 2)
        together = [integers for integers in arrays if not integers.entry]
        need(bool(together) == bool(stream), "a stream without arrays, or arrays without a stream")
        if together:
            codec, size = stream
            decode = _known(STREAMS, codec, "codec").decode
            found = decode(self._bytes(size), [i.shape for i in together], [i.kernels for i in together])
            for integers, array in zip(together, found, strict=True):
                integers.array = array
            bits = [1 + entropy_bits(integers.array) for integers in together]
            self.cost.update((id(i), size * b / sum(bits)) for i, b in zip(together, bits, strict=True))
        for integers in arrays:
            if integers.entry:
                self._read_section(integers)

    def _read_section(self, integers: Integers) -> None:
        codec, size, *parameters = integers.entry
        levels = _levels(parameters.pop(0)) if integers.levels else np.arange(2, dtype=np.int8)
        decode = _known(CODECS, codec, "codec").decode
        shape = integers.shape
        if integers.kernels is not None:
            shape = (int(integers.kernels.sum()), *shape[2:])
        stored = decode(self._bytes(size), shape, levels, _parameters(parameters))
        self.cost[id(integers)] = size
        integers.array = stored
        if integers.kernels is not None:
            integers.array = np.zeros(integers.shape, stored.dtype)
            integers.array[integers.kernels] = stored

    def floats(self, kind: object, shape: Shape) -> np.ndarray:
        """The next fp32 array of this precision."""
        pool = _known(self.pools, kind, "pool of")
        start, count = self.used[kind], math.prod(shape)
        need(start + count <= len(pool), f"more numbers of {kind} than their pool holds")
        self.used[kind] += count
        self.bytes_taken += count * self.share[kind]
        return pool[start : start + count].reshape(shape)

    def take(self, integers: Integers) -> Integers:
        """Note that a decoded array was used, for `taken`."""
        self.bytes_taken += self.cost.pop(id(integers))
        return integers

    def taken(self) -> int:
        """Bytes in the file of what was handed out since the last call; what is coded together is shared out."""
        taken, self.bytes_taken = self.bytes_taken, 0.0
        return round(taken)

    def end(self) -> None:
        """ValueError unless everything was handed out."""
        need(self.offset == len(self.data), f"{len(self.data) - self.offset} bytes after the last section")
        unused = [kind for kind, pool in self.pools.items() if self.used[kind] != len(pool)]
        need(not unused, f"more numbers of {unused[:1]} than the network has")


def _parameters(values: list[Any]) -> list[int]:
    need(len(values) <= 16 and all(isinstance(v, int) for v in values), "parameters of a section are not integers")
    return values


class _Plan:
    """A node whose record was read and whose integers are still to be decoded."""

    def __init__(self, op: str, name: str, distances: list[int], attrs: dict, tensors: dict, weight: dict) -> None:
        rule = OPS[op]
        self.op, self.name, self.distances, self.tensors, self.weight = op, name, distances, tensors, weight
        self.attrs = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
        self.indices = {key: _flags(tensors[key]) for key in tensors if key in rule.indices}
        self.orders = {key: _order(tensors[key]) for key in tensors if key in rule.orders}
        self.codes: Integers | None = None
        self.kept: list[Integers | None] = []
        self.mask: Integers | None = None

    def plan_weight(self, record: dict[str, Any], payload: Payload) -> None:
        """Read the weight's record, and believe its shape only as far as the budget goes."""
        need(record.keys() <= WEIGHT, f"a weight with {sorted(record.keys() - WEIGHT)[:1]}")
        self.full = tuple(map(_size, _rank(record["shape"])))
        need(len(self.full) in (2, 4) and min(self.full) >= 1, f"weight of shape {list(self.full)}")
        payload.spend(math.prod(self.full), 4)
        counts = [_size(record[n][0]) if n in record else f for n, f in zip(("rows", "cols"), self.full, strict=False)]
        self.shape = (*counts, *self.full[2:])
        for name, full in zip(("rows", "cols"), self.full, strict=False):
            self.kept.append(Integers(record[name][1], (full,)) if name in record else None)
        self.layout_class = _known(LAYOUTS, record.get("layout", "dense"), "layout")
        mask_shape = self.layout_class.mask_shape(self.shape, _size(record.get("width", 1)))
        need((mask_shape is None) == ("mask" not in record), "a mask belongs to layouts that have one")
        self.mask = None if mask_shape is None else Integers(record["mask"], mask_shape)

    def structure(self) -> Iterator[Integers]:
        """The flags that say what is there, in the file's order."""
        yield from self.indices.values()
        yield from (kept for kept in self.kept if kept is not None)
        if self.mask is not None:
            yield self.mask

    def lay_out(self, payload: Payload) -> None:
        """Make the layout, now that the flags are known, and ask for the codes."""
        if not self.weight:
            return
        self.layout: Layout = self.layout_class(self.shape, None if self.mask is None else self.mask.flags())
        problem = self.layout.problem()
        need(problem is None, str(problem))
        if "values" in self.weight:
            self.codes = Integers(self.weight["codes"], self.shape, self.layout.kernels(), levels=True)

    def node(self, earlier: list[Node], payload: Payload) -> Node:
        """The node itself."""
        tensors = {}
        for key, entry in self.tensors.items():
            if key in self.indices:
                tensors[key] = np.flatnonzero(payload.take(self.indices[key]).flags())
            elif key in self.orders:
                tensors[key] = self.orders[key]
            else:
                tensors[key] = payload.floats(entry[0], tuple(map(_size, _rank(entry[1:]))))
        inputs = tuple(earlier[-d].name for d in self.distances)
        return Node(self.op, self.name, inputs, self.attrs, tensors, self._layer(payload) if self.weight else None)

    def _layer(self, payload: Payload) -> LayerCodes:
        rows, cols = (self._kept(k, payload) for k in (0, 1))
        if self.mask is not None:
            payload.take(self.mask)
        stored = self.layout.stored_shape()
        if self.codes is None:
            floats = payload.floats(self.weight["codes"], stored)
            return LayerCodes(self.full, rows, cols, floats, Floats(), self.layout)
        codes = self.layout.take(payload.take(self.codes).array)
        if codes.dtype != np.int8 and abs(codes.astype(np.int32)).max(initial=0) <= 127:
            codes = codes.astype(np.int8)
        return LayerCodes(self.full, rows, cols, codes, _values(self.weight["values"], payload), self.layout)

    def _kept(self, axis: int, payload: Payload) -> np.ndarray:
        flags = self.kept[axis]
        if flags is None:
            return np.arange(self.shape[axis])
        index = np.flatnonzero(payload.take(flags).flags())
        need(len(index) == self.shape[axis], f"{len(index)} kept of axis {axis}, expected {self.shape[axis]}")
        return index


def _plan(record: object, place: int, payload: Payload, limits: Limits) -> _Plan:
    need(isinstance(record, list) and 2 <= len(record) <= 6, "a node is no such list")
    op, name, inputs, attrs, tensors, weight = (*record, *[[], {}, {}, {}][len(record) - 2 :])
    rule = _known(OPS, op, "operation")
    need(isinstance(name, str) and len(name) <= limits.name_length, f"a name is no text of up to {limits.name_length}")
    distances = [_size(d) for d in inputs or [1] * (rule.arity[1] > 0)]
    need(all(1 <= d <= place for d in distances), f"node {name!r} reads what no earlier node makes")
    need(all(isinstance(part, dict) for part in (attrs, tensors, weight)), f"node {name!r} is malformed")
    plan = _Plan(op, name, distances, attrs, tensors, weight)
    if weight:
        plan.plan_weight(weight, payload)
    return plan


def _flags(entry: list[Any]) -> Integers:
    count, flags = entry
    need(0 < _size(count) <= MAX_SIZE, f"{count} channels")
    return Integers(flags, (count,))


def _order(entry: list[Any]) -> np.ndarray:
    return np.array([_size(n) for n in entry], np.int64)


def _levels(values: object) -> np.ndarray:
    good = isinstance(values, list) and 1 <= len(values) <= MAX_LEVELS
    good = good and all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 1 << 15 for v in values)
    need(good and all(a < b for a, b in pairwise(values)), "levels are not increasing numbers")
    return np.array(values, np.int8 if max(abs(values[0]), abs(values[-1])) <= 127 else np.int16)


def _values(record: list[Any], payload: Payload) -> Values:
    name, *entries = record
    cls = _known(VALUES, name, "way to values")
    need(len(entries) == len(fields(cls)), f"{name} has {len(entries)} parts, expected {len(fields(cls))}")
    parts = [
        payload.floats(entry[0], tuple(map(_size, _rank(entry[1:])))) if isinstance(entry, list) else _size(entry)
        for entry in entries
    ]
    return cls(*parts)
