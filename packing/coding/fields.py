"""Order-0 coding: numbers as bit fields, each field's values coded by how often they came before.

A field is some bits of every number: all of a symbol, or a float's exponent. Its bits go from the highest to the
lowest; the bits before are the context (a binary tree whose nodes count zeros and ones), so the cost tends to the
field's order-0 entropy whatever its distribution, and no table of frequencies is sent. Fields follow one another, each
after one bit that says whether it is modelled (1) or plain (0): noise, such as a mantissa's low bits, stays plain.
"""

from __future__ import annotations

import numpy as np

from sparsign.packing.coding.arithmetic import HALF, Coder, Decoder, Encoder

FULL = 1 << 16
"""A node that has counted so many bits halves its counts."""


def encode_fields(numbers: np.ndarray, widths: list[int]) -> bytes:
    """Bytes of checked uint32 numbers; see `coders.encode_fields`."""
    encoder = Encoder()
    for field, width in zip(_split(numbers, widths), widths, strict=True):
        alone = Encoder()
        _code_field(alone, field, width, True)
        _code_field(encoder, field, width, 8 * len(alone.finish()) < width * len(field))
    return encoder.finish()


def decode_fields(data: bytes, numbers: np.ndarray, widths: list[int]) -> None:
    """Fill in numbers that are zero. ValueError for data that no numbers make."""
    decoder = Decoder(data)
    for width in widths:
        field = [0] * len(numbers)
        _code_field(decoder, field, width, False)
        numbers[:] = numbers.astype(np.uint32) << np.uint32(width) | np.array(field, np.uint32)
    decoder.finish()


def _split(numbers: np.ndarray, widths: list[int]) -> list[list[int]]:
    shifts = np.cumsum([0, *reversed(widths)])[-2::-1]
    return [(numbers >> shift & (1 << width) - 1).tolist() for shift, width in zip(shifts, widths, strict=True)]


def _code_field(coder: Coder, field: list[int], width: int, modelled: bool) -> None:
    """Code a field's values in place: an encoder reads them, a decoder fills them in."""
    modelled = bool(coder.code(int(modelled), HALF))
    zeros, ones = [0] * (1 << width), [0] * (1 << width)
    for index, value in enumerate(field):
        node = 1
        for shift in range(width - 1, -1, -1):
            bit = coder.code(value >> shift & 1, _probability(zeros[node], ones[node]) if modelled else HALF)
            (ones if bit else zeros)[node] += 1
            if zeros[node] + ones[node] == FULL:
                zeros[node], ones[node] = zeros[node] >> 1, ones[node] >> 1
            node = node << 1 | bit
        field[index] = node - (1 << width)


def _probability(zeros: int, ones: int) -> int:
    """(ones + 1/2) / (zeros + ones + 1), Krichevsky and Trofimov's estimate, as `Coder.code` takes it."""
    return min(max((2 * ones + 1 << 15) // (zeros + ones + 1), 1), 65535)
