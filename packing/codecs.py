"""Arrays of small integers to bytes and back.

Every integer array of a packed model (codes, channel indices, masks of layouts) is an array of numbers that come from a
short increasing list of levels. A codec turns such an array into bytes, and may keep a few integers as parameters of
the section; the writer keeps the shortest result. A new codec is one more entry in CODECS.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsign.packing.coding import decode_codes, decode_fields, encode_codes, encode_fields

TRITS = 5
"""Three-level symbols per byte: 3^5 = 243 of 256 values used, 1.6 bits a symbol against log2(3) = 1.585."""
_POWERS = 3 ** np.arange(TRITS, dtype=np.uint8)
_TRITS_OF_BYTE = (np.arange(3**TRITS)[:, None] // _POWERS % 3).astype(np.uint8)
MAX_LEVELS = 1 << 16
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Codec:
    """`encode(numbers, levels) -> (parameters, bytes)`; `decode(data, shape, levels, parameters) -> numbers`.

    `numbers`: an integer array of any shape whose values are all among the increasing `levels`, int64. decode gives
    back the dtype of `levels`, and raises ValueError for data that no encode call with this shape and these levels
    could have made. encode may return None for an array that it does not take.
    """

    encode: Callable[[np.ndarray, np.ndarray], tuple[list[int], bytes] | None]
    decode: Callable[[bytes, Shape, np.ndarray, list[int]], np.ndarray]


def bits_per_symbol(levels: int) -> int:
    """ceil(log2(levels)), at least 1."""
    return max(1, (levels - 1).bit_length())


def packed_size(count: int, levels: int) -> int:
    """Bytes that `pack` makes of `count` symbols; none where there is only one level."""
    if levels == 1:
        return 0
    return -(-count // TRITS) if levels == 3 else -(-count * bits_per_symbol(levels) // 8)


def pack(symbols: np.ndarray, levels: int) -> bytes:
    """Fixed-width packing: five trits a byte for three levels, else ceil(log2(levels)) bits, most significant first."""
    if levels == 1:
        return b""
    if levels == 3:
        padded = np.zeros(packed_size(len(symbols), 3) * TRITS, np.uint8)
        padded[: len(symbols)] = symbols
        return (padded.reshape(-1, TRITS) * _POWERS).sum(axis=1, dtype=np.uint8).tobytes()
    width = bits_per_symbol(levels)
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint16)
    bits = (symbols.astype(np.uint16)[:, None] >> shifts & 1).astype(np.uint8)
    return np.packbits(bits).tobytes()


def unpack(data: bytes, count: int, levels: int) -> np.ndarray:
    """Inverse of `pack`: uint16 [count]. ValueError for a wrong length, a symbol out of range or nonzero padding."""
    if len(data) != packed_size(count, levels):
        raise ValueError(f"{len(data)} bytes for {count} symbols, expected {packed_size(count, levels)}")
    if levels == 1:
        return np.zeros(count, np.uint16)
    raw = np.frombuffer(data, np.uint8)
    if levels == 3:
        if raw.size and raw.max() >= 3**TRITS:
            raise ValueError(f"byte {raw.max()} is no group of {TRITS} trits")
        symbols, padding = np.split(_TRITS_OF_BYTE[raw].ravel().astype(np.uint16), [count])
    else:
        width = bits_per_symbol(levels)
        bits, padding = np.split(np.unpackbits(raw), [count * width])
        weights = (1 << np.arange(width - 1, -1, -1)).astype(np.uint16)
        symbols = bits.astype(np.uint16) if width == 1 else (bits.reshape(count, width) @ weights).astype(np.uint16)
        if symbols.size and symbols.max() >= levels:
            raise ValueError(f"symbol {symbols.max()} of {levels} levels")
    if padding.any():
        raise ValueError("padding is not zero")
    return symbols


def deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    """Raw DEFLATE at level 9, without zlib's header and checksum."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=dictionary)
    return compressor.compress(data) + compressor.flush()


def inflate(data: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Inverse of `deflate`, never producing more than `size` bytes. ValueError unless it is exactly `size`."""
    decompressor = zlib.decompressobj(-15, zdict=dictionary)
    try:
        result = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged DEFLATE data ({error})") from None
    if len(result) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"DEFLATE data does not end after {size} bytes")
    return result


def symbols_of(numbers: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """uint16 [count]: the position of every number among the levels."""
    least = int(levels[0])
    table = np.zeros(int(levels[-1]) - least + 1, np.uint16)
    table[levels - least] = np.arange(len(levels), dtype=np.uint16)
    return table[numbers.ravel().astype(np.int64) - least]


def numbers_of(symbols: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """levels[symbols]; without a table, which takes eight bytes a symbol, where levels follow one another."""
    if int(levels[-1]) - int(levels[0]) == len(levels) - 1:
        numbers = symbols.astype(levels.dtype)
        numbers += levels[0]
        return numbers
    return levels[symbols]


def _pack(numbers: np.ndarray, levels: np.ndarray) -> tuple[list[int], bytes]:
    return [], pack(symbols_of(numbers, levels), len(levels))


def _unpack(data: bytes, shape: Shape, levels: np.ndarray, parameters: list[int]) -> np.ndarray:
    return numbers_of(unpack(data, math.prod(shape), len(levels)), levels).reshape(shape)


def _deflate(numbers: np.ndarray, levels: np.ndarray) -> tuple[list[int], bytes]:
    return [], deflate(_pack(numbers, levels)[1])


def _inflate(data: bytes, shape: Shape, levels: np.ndarray, parameters: list[int]) -> np.ndarray:
    return _unpack(inflate(data, packed_size(math.prod(shape), len(levels))), shape, levels, parameters)


def _fields(numbers: np.ndarray, levels: np.ndarray) -> tuple[list[int], bytes]:
    return [], encode_fields(symbols_of(numbers, levels), [bits_per_symbol(len(levels))])


def _from_fields(data: bytes, shape: Shape, levels: np.ndarray, parameters: list[int]) -> np.ndarray:
    symbols = decode_fields(data, math.prod(shape), [bits_per_symbol(len(levels))])
    if symbols.size and symbols.max() >= len(levels):
        raise ValueError(f"symbol {symbols.max()} of {len(levels)} levels")
    return numbers_of(symbols, levels).reshape(shape)


CODECS: dict[str, Codec] = {
    "pack": Codec(_pack, _unpack),
    "deflate": Codec(_deflate, _inflate),
    "fields": Codec(_fields, _from_fields),
}


@dataclass(frozen=True)
class Stream:
    """Many arrays in one run of bytes, so that what was learnt from one helps the next.

    `encode(arrays, kernels) -> bytes`; `decode(data, shapes, kernels) -> arrays`. kernels: per array None, or bool
    [rows, cols]: which kernels are coded; the others are 0. decode raises ValueError for data that no encode call made.
    """

    encode: Callable[[list[np.ndarray], list[np.ndarray | None]], bytes]
    decode: Callable[[bytes, list[Shape], list[np.ndarray | None]], list[np.ndarray]]


STREAMS: dict[str, Stream] = {"mixing": Stream(encode_codes, decode_codes)}
