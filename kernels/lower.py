"""A packed network as steps of the compiled engine: which values are bits, and what is fused into which step.

The only file of the engine that reads `packing`. Every step of the engine makes an output and runs a chain of
operations on it while it is in the cache; so a conv takes along what follows it: batch norm, sum, activation, sign.
A value is stored as fp32 if someone reads it so, as one bit per channel if a conv over signs reads it, or both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from sparsign.packing.spec import LayerCodes, Node, PackedModel

CURVES = ("sigmoid", "silu", "hardsigmoid", "hardswish")
FUSED = ("affine", "prelu", "relu", "relu6", "hardtanh", *CURVES, "add_scalar", "mul_scalar", "sign", "add", "mul")
MOST_INPUTS = 60_000
"""Inputs of an output that 16-bit counts of mismatches hold; a ternary weight counts twice."""
NOTHING = np.empty(0, np.int32)


class CannotRun(ValueError):
    """The packed network holds something that the compiled engine has no step for; the message says what."""


class Lowered:
    """A compiled network and where its values lie.

    Attributes:
        network: the `_native.Network`, finished.
        bits: value ids of the signs, by node name.
        sums: with `probe`, (node read, value id of the integer sums) of every conv over signs, by node name.
    """

    def __init__(self, native: ModuleType, packed: PackedModel, isa: str = "", probe: bool = False) -> None:
        """probe: keep every value, and store the integer sums of every layer that reads signs.

        Raises:
            CannotRun: an operation without a step. ValueError: the model does not hang together, or the ISA is unknown.
        """
        self.shapes = packed.validate()
        self.native, self.packed, self.probe = native, packed, probe
        self.network = native.Network(isa, packed.input_shape, probe)
        self.floats: dict[str, int] = {}
        self.bits: dict[str, int] = {}
        self.sums: dict[str, tuple[str, int]] = {}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in packed.nodes:
            for source in node.inputs:
                self.readers[source].append(node)
        self.signs = packed.sign_valued()
        self.over_bits = {n.name: unit for n in packed.nodes if (unit := self._unit_weights(n)) is not None}
        self.done: set[str] = set()
        for node in packed.nodes:
            if node.name not in self.done:
                with _said_of(node.name):
                    self._lower(node)
        with _said_of(packed.output):
            self.network.finish(self.floats[packed.output])

    def _lower(self, node: Node) -> None:
        """One step: this node, and what can be fused behind it."""
        if node.op == "input":
            self.floats[node.name] = 0
            self.done.add(node.name)
            return
        make = getattr(self, f"_{node.op}", None)
        if make is None:
            raise CannotRun(f"node {node.name!r}: the compiled engine has no step for {node.op!r}")
        make(node)

    # What a step's output goes through.

    def _chain(self, node: Node, chain: Any = None) -> Any:
        """The chain behind `node`'s output: as many following nodes as can be fused, and where their outputs go."""
        chain = chain or self.native.Chain()
        fresh: set[str] = set()  # stored by this very chain: no sum of it may read them
        while True:
            self.done.add(node.name)
            signs = [r for r in self.readers[node.name] if r.op == "sign"]
            rest = [r for r in self.readers[node.name] if r.op != "sign"]
            for reader in signs:
                self._store_bits(reader, chain)
            as_floats = [r for r in signs if self._wants_floats(r)]  # lose what they are signs of: end the chain
            follower = None if as_floats else next((r for r in rest if self._fusable(r, node, fresh)), None)
            if node.name in self.signs:
                self._store_bits(node, chain)
            if self._wants_floats(node, but=[follower, *signs]):
                chain.store(self._float_value(node.name))
                fresh.add(node.name)
            if as_floats:
                chain.signum()
            for reader in as_floats:
                chain.store(self._float_value(reader.name))
            if follower is None:
                return chain
            self._fuse(follower, node.name, chain)
            node = follower

    def _fusable(self, reader: Node, source: Node, fresh: set[str]) -> bool:
        if reader.op not in FUSED or reader.name in self.done:
            return False
        if reader.op not in ("add", "mul"):
            return True
        if reader.op == "mul" and reader.inputs[0] != source.name:  # the gate: its pixels are not the product's
            return False
        other = [name for name in reader.inputs if name != source.name]
        return not reader.tensors and len(other) == 1 and other[0] in self.floats and other[0] not in fresh

    def _fuse(self, node: Node, source: str, chain: Any) -> None:
        if node.op == "affine":
            chain.affine(_floats(node.tensors["scale"]), _floats(node.tensors["shift"]))
        elif node.op == "add":
            chain.add(self.floats[next(name for name in node.inputs if name != source)])
        elif node.op == "mul":
            chain.mul(self.floats[node.inputs[1]])
        elif node.op == "prelu":
            chain.prelu(self._per_channel(node, node.tensors["slope"]))
        elif node.op == "add_scalar":
            chain.shift(self._per_channel(node, node.attrs["value"]))
        elif node.op == "mul_scalar":
            chain.scale(self._per_channel(node, node.attrs["value"]))
        elif node.op in CURVES:
            getattr(chain, node.op)()
        else:
            chain.clamp(*_range(node))

    def _per_channel(self, node: Node, values: np.ndarray | float) -> np.ndarray:
        return _floats(np.broadcast_to(np.asarray(values, np.float32), self.shapes[node.name][:1]))

    def _store_bits(self, node: Node, chain: Any) -> None:
        """Stores the signs of what the chain holds for `node`, if anyone reads them as bits."""
        self.done.add(node.name)
        if any(self._reads_bits(r) for r in self.readers[node.name]):
            self.bits[node.name] = self._value(node.name, bits=True)
            chain.sign(self.bits[node.name])

    def _wants_floats(self, node: Node, but: Sequence[Node | None] = ()) -> bool:
        """Whether a value is stored as fp32: it is the output, or someone other than `but` reads it so."""
        readers = [r for r in self.readers[node.name] if r not in but]
        return node.name == self.packed.output or self.probe or any(not self._reads_bits(r) for r in readers)

    def _reads_bits(self, node: Node) -> bool:
        """Whether a node is a conv or linear layer that is run over bits."""
        return node.name in self.over_bits

    def _unit_weights(self, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
        """(int8 -1, 0, 1, fp32 scales [rows]) of a layer that reads signs and has such weights, else None."""
        if node.codes is None or node.inputs[0] not in self.signs or node.attrs.get("groups", 1) != 1:
            return None
        if 2 * math.prod(node.codes.shape[1:]) > MOST_INPUTS:
            return None
        return _codes_as_signs(node.codes) or _weights_as_signs(node.codes.weight())

    # Values.

    def _value(self, name: str, bits: bool) -> int:
        shape = self.shapes[name]
        c, h, w = shape if len(shape) == 3 else (shape[0], 1, 1)
        return self.network.value(bits, h, w, c)

    def _float_value(self, name: str) -> int:
        self.floats[name] = self._value(name, bits=False)
        return self.floats[name]

    def _gathered(self, sources: list, name: str, chain: Any) -> None:
        shape = self.shapes[name]
        self.network.gather(sources, shape if len(shape) == 3 else (*shape, 1, 1), chain)

    # Steps.

    def _conv(self, node: Node) -> None:
        a = node.attrs
        kernel = node.codes.shape[2:] if node.op == "conv" else (1, 1)
        window = self.native.Window(
            kernel, a.get("stride", (1, 1)), a.get("padding", (0, 0)), a.get("dilation", (1, 1)), a.get("groups", 1)
        )
        chain = self.native.Chain()
        if self._reads_bits(node):
            source, run = self.bits[node.inputs[0]], self.network.conv_bits
            weight, scale = self.over_bits[node.name]
            if self.probe:
                sums = self._value(node.name, bits=False)
                self.sums[node.name] = (node.inputs[0], sums)
                chain.store(sums)
            if not np.all(scale == 1):
                chain.scale(scale)
        else:
            source, run = self.floats[node.inputs[0]], self.network.conv_float
            weight = _floats(node.codes.weight())
        if "bias" in node.tensors:
            chain.shift(_floats(node.tensors["bias"]))
        groups, channels = a.get("groups", 1), (self.shapes[node.inputs[0]][0], self.shapes[node.name][0])
        if groups == 1 or channels == (groups, groups):
            chain = self._chain(node, chain)
        else:  # a group's channels do not fall on words of signs: what follows is a step of its own
            self.done.add(node.name)
            chain.store(self._float_value(node.name))
        run(source, window, np.ascontiguousarray(weight.reshape(*weight.shape[:2], *kernel)), chain)

    _linear = _conv

    def _elementwise(self, node: Node) -> None:
        """affine, relu, ... where there is nothing to fuse it to: from floats."""
        chain, source = self.native.Chain(), node.inputs[0]
        if node.op == "sign":
            self._store_bits(node, chain)
            if self._wants_floats(node):
                chain.signum()
                chain.store(self._float_value(node.name))
        else:
            self._fuse(node, source, chain)
            chain = self._chain(node, chain)
        self._gathered([self.native.Source(self.floats[source], 1, NOTHING)], node.name, chain)

    _affine = _prelu = _relu = _relu6 = _hardtanh = _sign = _elementwise
    _sigmoid = _silu = _hardsigmoid = _hardswish = _add_scalar = _mul_scalar = _mul = _elementwise

    def _add(self, node: Node) -> None:
        channels = self.shapes[node.name][0]
        sources = []
        for key, name in zip(("index0", "index1"), node.inputs, strict=True):
            places = NOTHING
            if key in node.tensors:
                places = np.full(channels, -1, np.int32)
                places[node.tensors[key]] = np.arange(len(node.tensors[key]))
            sources.append(self.native.Source(self.floats[name], 1, places))
        self._gathered(sources, node.name, self._chain(node))

    def _select(self, node: Node) -> None:
        index = node.tensors["index" if node.op == "select" else "order"].astype(np.int32)
        source = self.native.Source(self.floats[node.inputs[0]], 1, index)
        self._gathered([source], node.name, self._chain(node))

    _permute = _select

    def _cat(self, node: Node) -> None:
        if len(node.inputs) > 8:
            raise CannotRun(f"node {node.name!r}: cat of {len(node.inputs)} operands, the compiled engine takes 8")
        channels, start, sources = self.shapes[node.name][0], 0, []
        for name in node.inputs:
            width = self.shapes[name][0]
            places = np.full(channels, -1, np.int32)
            places[start : start + width] = np.arange(width)
            sources.append(self.native.Source(self.floats[name], 1, places))
            start += width
        self._gathered(sources, node.name, self._chain(node))

    def _pad_shortcut(self, node: Node) -> None:
        channels, width = self.shapes[node.name][0], self.shapes[node.inputs[0]][0]
        places = np.full(channels, -1, np.int32)
        places[node.attrs["before"] :][:width] = np.arange(width)
        source = self.native.Source(self.floats[node.inputs[0]], node.attrs["stride"], places)
        self._gathered([source], node.name, self._chain(node))

    def _flatten(self, node: Node) -> None:
        self.network.flatten(self.floats[node.inputs[0]], self._chain(node))

    def _maxpool(self, node: Node) -> None:
        a = node.attrs
        window = self.native.Window(a["kernel"], a["stride"], a["padding"], a["dilation"])
        self._pooled(node, window, True, False)

    def _avgpool(self, node: Node) -> None:
        a = node.attrs
        self._pooled(
            node, self.native.Window(a["kernel"], a["stride"], a["padding"], (1, 1)), False, a["count_include_pad"]
        )

    def _globalavgpool(self, node: Node) -> None:
        self._pooled(node, self.native.Window(self.shapes[node.inputs[0]][1:], (1, 1), (0, 0), (1, 1)), False, False)

    def _pooled(self, node: Node, window: Any, maximum: bool, count_pad: bool) -> None:
        source = self.floats[node.inputs[0]]
        self.network.pool(maximum, source, window, self.shapes[node.name][1:], count_pad, self._chain(node))


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """What a valid network has beyond the engine's limits (sizes, memory) is something that it cannot run."""
    try:
        yield
    except CannotRun:
        raise
    except ValueError as error:
        raise CannotRun(f"node {name!r}: the compiled engine refuses it: {error}") from error


def _codes_as_signs(layer: LayerCodes) -> tuple[np.ndarray, np.ndarray] | None:
    """(int8 signs, fp32 scales [rows]) where the codes are the signs already and every row has one scale, else None."""
    rows = len(layer.rows)
    pair = layer.values.signed_scales(rows)
    if pair is None or not np.array_equal(*pair) or not (pair[0] > 0).all():
        return None
    if layer.codes.min(initial=0) < -1 or layer.codes.max(initial=0) > 1:
        return None
    return np.ascontiguousarray(layer.dense_codes(), np.int8), _floats(pair[0])


def _weights_as_signs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The same of any fp32 weight whose rows hold one magnitude beside 0, else None."""
    rows = weight.reshape(len(weight), -1)
    scale = np.maximum(rows.max(axis=1), -rows.min(axis=1))[:, None]
    signs = (rows > 0).view(np.int8) - (rows < 0).view(np.int8)
    return (signs.reshape(weight.shape), _floats(scale[:, 0])) if np.array_equal(signs * scale, rows) else None


def _floats(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _range(node: Node) -> tuple[float, float]:
    """Bounds of an activation that clamps."""
    infinity = float("inf")
    return {
        "relu": lambda: (0.0, infinity),
        "relu6": lambda: (0.0, 6.0),
        "hardtanh": lambda: (node.attrs["min"], node.attrs["max"]),
    }[node.op]()
