"""Context mixing for the codes of whole networks. This file is the format's specification; C++ codes the same bits.

Codes are integers in layers [rows, cols, kh, kw], coded filter by filter, kernel by kernel, position by position in
one stream. A code is a few binary decisions, each a *node*:

    node 0            is it nonzero?
    node 1            is it negative?
    node 2 + 4 k      is its magnitude 2^(k+1) or more? (asked for k = 0, 1, .. until the answer is no)
    node 3 + 4 k      the bit below the magnitude's leading bit 2^k
    node 4 + 4 k + b  the next lower bit, where b is the bit before. Bits below these two are plain.

Ten *contexts*, each some knowledge of the codes before, keep an adaptive probability of every node (a slot, see
`arithmetic`). The logarithms of their odds and six numbers that stand for neighbours in the kernel are weighted and
added; that sum is the logarithm of the odds that are used. The weights learn with each bit by gradient descent on the
code length (Mahoney 2005, "Adaptive weighing of context models for lossless data compression"). All is integer
arithmetic: >> rounds towards minus infinity.

The first decision of a layer is its kind: a bit that says whether it differs from the layer before (modelled; the
first layer is compared with TERNARY), and if so five plain bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from sparsign.packing.coding.arithmetic import HALF, SLOT_HALF, Coder, Decoder, Encoder, probability, updated

FLAGS, SIGNS, TERNARY, WIDEST = 0, 1, 2, 16
"""Kinds of layer: codes {0, 1}: no node 1; {-1, 1}: no node 0; kind k >= 2: magnitudes below 2^(k - 1)."""

ONE = 256
"""1 in the domain of logarithms of odds."""
REACH = 11 * ONE - 1
"""Largest logarithm of odds: a probability of 1/65,536 or so."""
CONTEXTS, INPUTS = 10, 16
FIRST_COUNT = 2
"""Count of a slot at its first use: it starts with the layer's running probability as if it had seen two bits."""
FIRST_WEIGHTS = [9830] * CONTEXTS + [0] * (INPUTS - CONTEXTS)
"""0.15 for each context; weights have 16 fractional bits."""
HEAVIEST = 1 << 19
COLUMNS = 1 << 14
"""Columns that far apart share a slot, so memory stays bounded."""


def _squash_table() -> list[int]:
    """SQUASH[REACH + x] = 65536 / (1 + e^(-x / 256)), kept in 1 .. 65535, by repeated multiplication."""
    below = []
    power = 1 << 32  # e^(-x / 256) with 32 fractional bits
    for _ in range(REACH + 1):
        below.append(min(max((power << 16) // ((1 << 32) + power), 1), HALF))
        power = power * 4278222805 >> 32
    return below[:0:-1] + [min(65536 - p, 65535) for p in below]


def _stretch_table(squash: list[int]) -> list[int]:
    """STRETCH[p >> 4]: the least x in -REACH .. REACH whose probability is that of the step's middle or more."""
    table, x = [], 0
    for middle in range(8, 65536, 16):
        while x < 2 * REACH and squash[x] < middle:
            x += 1
        table.append(x - REACH)
    return table


SQUASH = _squash_table()
STRETCH = _stretch_table(SQUASH)


CodedLayer = tuple[np.ndarray, np.ndarray | None, int]
"""Codes int16 [rows, cols, kh, kw], coded in place; uint8 [rows, cols], nonzero where kernels are coded; the kind."""


def encode_codes(layers: list[CodedLayer]) -> bytes:
    """Bytes of checked layers; see `coders.encode_codes`."""
    encoder = Encoder()
    _code_layers(encoder, layers)
    return encoder.finish()


def decode_codes(data: bytes, layers: list[CodedLayer]) -> None:
    """Fill in layers of zeros, whose kinds are ignored. ValueError for data that no layers make."""
    decoder = Decoder(data)
    _code_layers(decoder, layers)
    decoder.finish()


def _code_layers(coder: Coder, layers: list[CodedLayer]) -> None:
    model = Model()
    for codes, mask, kind in layers:
        values = codes.ravel().tolist()
        model.code_layer(coder, values, codes.shape, mask, kind)
        codes.flat = values


class Model:
    """Everything that adapts. Layers share all but the slots of rows, columns and of the order-0 context."""

    def __init__(self) -> None:
        self.slots: list[dict[tuple[int, int], int]] = [{} for _ in range(CONTEXTS)]  # (context, node) -> slot
        self.weights: dict[int, list[int]] = {}  # node -> one weight an input
        self.kind, self.kind_changes = TERNARY, SLOT_HALF

    def code_layer(
        self, coder: Coder, codes: list[int], shape: tuple[int, ...], mask: np.ndarray | None, kind: int
    ) -> None:
        """Code a layer's values in place: an encoder reads them, a decoder fills them in and ignores `kind`."""
        rows, cols, height, width = shape
        kind = self._code_kind(coder, kind)
        self.slots[0].clear()
        self.slots[2].clear()
        for row in range(rows):
            self.slots[1].clear()
            for col in range(cols):
                if mask is None or mask[row, col]:
                    self._code_kernel(coder, Kernel(codes, row, col, cols, height, width), kind)

    def _code_kind(self, coder: Coder, kind: int) -> int:
        differs = coder.code(int(kind != self.kind), probability(self.kind_changes))
        self.kind_changes = updated(self.kind_changes, differs)
        if differs:
            self.kind = sum(coder.code(kind >> shift & 1, HALF) << shift for shift in (4, 3, 2, 1, 0))
        if self.kind > WIDEST:
            raise ValueError(f"a layer of kind {self.kind}, expected at most {WIDEST}")
        return self.kind

    def _code_kernel(self, coder: Coder, kernel: Kernel, kind: int) -> None:
        prefix = 0
        for position in range(kernel.size):
            near = kernel.near(position)
            contexts = self._contexts(kernel, position, near, prefix)
            code = self._code_number(coder, kernel.codes[kernel.start + position], kind, contexts, near)
            kernel.codes[kernel.start + position] = code
            prefix = (3 * prefix + trit(code) + 1) & 0xFFFF

    def _code_number(self, coder: Coder, code: int, kind: int, contexts: list[int], near: list[int]) -> int:
        def decide(node: int, bit: int) -> int:
            return self._decide(coder, node, int(bit), contexts, near)

        if kind != SIGNS and not decide(0, code != 0):
            return 0
        negative = kind != FLAGS and decide(1, code < 0)
        magnitude, given, bits, most = 1, abs(code), 0, max(kind - 2, 0)
        while bits < most and decide(2 + 4 * bits, given >> bits + 1 > 0):
            bits += 1
        for shift in range(bits - 1, -1, -1):
            bit, below = given >> shift & 1, bits - 1 - shift
            node = 3 + 4 * bits + (1 + (magnitude & 1) if below else 0)
            bit = decide(node, bit) if below < 2 else coder.code(bit, HALF)
            magnitude = magnitude << 1 | bit
        return -magnitude if negative else magnitude

    def _contexts(self, kernel: Kernel, position: int, near: list[int], prefix: int) -> list[int]:
        """The ten contexts of a position: numbers that name slots."""
        left, up, up_left, up_right = near[:4]
        filters = [kernel.earlier(position, row=back) for back in (1, 2, 3)]
        channels = [kernel.earlier(position, col=back) for back in (1, 2, 3)]
        beside = [left, up]
        place = min(position, 63)
        column = kernel.col % COLUMNS
        density = [STRETCH[self.slots[k].get((c, 0), 0) >> 20] + 11 * ONE >> 8 for k, c in ((1, 0), (2, column))]
        sizes = [min(abs(a) + abs(b), 15) for a, b in ((left, up), (filters[0], channels[0]))]
        return [
            0,  # the layer so far
            0,  # the filter so far
            column,  # the input channel in the filters so far
            place,  # the place in the kernel
            digits([place, *map(trit, [left, up, up_left, up_right])], 4),
            prefix,  # the kernel so far
            digits(map(trit, filters + beside), 4),  # the same place in the last filters
            digits(map(trit, channels + beside), 4),  # and in the last channels
            digits(density, 32),  # how dense both the filter and the channel are
            digits(sizes, 16),  # how large the neighbours are
        ]

    def _decide(self, coder: Coder, node: int, bit: int, contexts: list[int], near: list[int]) -> int:
        """Code one decision and learn from it."""
        keys = [(context, node) for context in contexts]
        layer = self.slots[0].setdefault(keys[0], SLOT_HALF)
        fresh = layer >> 10 << 10 | FIRST_COUNT
        slots = [known.setdefault(key, fresh) for known, key in zip(self.slots, keys, strict=True)]
        inputs = [STRETCH[slot >> 20] for slot in slots] + [signal(code, node) for code in near]
        weights = self.weights.setdefault(node, list(FIRST_WEIGHTS))

        total = sum(weight * x >> 4 for weight, x in zip(weights, inputs, strict=True)) >> 12
        p1 = SQUASH[REACH + min(max(total, -REACH), REACH)]
        bit = coder.code(bit, p1)

        step = 3 * ((bit << 16) - p1) >> 6
        for index, x in enumerate(inputs):
            weights[index] = min(max(weights[index] + (x * step + 4096 >> 13), -HEAVIEST), HEAVIEST)
        for known, key, slot in zip(self.slots, keys, slots, strict=True):
            known[key] = updated(slot, bit)
        return bit


class Kernel:
    """One kernel among the codes of its layer."""

    def __init__(self, codes: list[int], row: int, col: int, cols: int, height: int, width: int) -> None:
        self.codes, self.row, self.col, self.cols, self.width = codes, row, col, cols, width
        self.size = height * width
        self.start = (row * cols + col) * self.size

    def near(self, position: int) -> list[int]:
        """Codes to the left, above, above left and right, two to the left, two above; 0 outside the kernel."""
        y, x = divmod(position, self.width)
        places = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
        return [
            self.codes[self.start + position - up * self.width - left] if up <= y and 0 <= x - left < self.width else 0
            for up, left in places
        ]

    def earlier(self, position: int, row: int = 0, col: int = 0) -> int:
        """The code at the same place so many rows and columns before; 0 outside the layer."""
        if row > self.row or col > self.col:
            return 0
        return self.codes[self.start + position - (row * self.cols + col) * self.size]


def trit(code: int) -> int:
    """0 for zero, 1 for negative, 2 for positive."""
    return (code < 0) + 2 * (code > 0)


def digits(numbers: Iterable[int], base: int) -> int:
    """The numbers as one, the last being the lowest digit."""
    return functools.reduce(lambda number, digit: number * base + digit, numbers, 0)


def signal(code: int, node: int) -> int:
    """What a neighbour says about a node, in the domain of logarithms of odds."""
    if node == 0:
        return 2 * ONE * (code != 0)
    if node == 1:
        return 2 * ONE * ((code < 0) - (code > 0))
    return ONE * min(abs(code), 8)
