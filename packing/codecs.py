"""Symbols to bytes and back: how arrays of small integers lie in a file.

Every integer array of a packed model (codes, index sets, kernel masks) is a run of `count` symbols 0 .. levels-1. A
codec turns such a run into bytes; the writer keeps the shortest result. A new codec is one more entry in CODECS.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TRITS = 5
"""Three-level symbols per byte: 3^5 = 243 of 256 values used, 1.6 bits a symbol against log2(3) = 1.585."""
_POWERS = 3 ** np.arange(TRITS, dtype=np.uint8)
_TRITS_OF_BYTE = (np.arange(3**TRITS)[:, None] // _POWERS % 3).astype(np.uint8)
MAX_LEVELS = 1 << 16
EXPANSION = 1100
"""No more bytes than this come out of one (DEFLATE: 1032)."""


@dataclass(frozen=True)
class Codec:
    """`encode(symbols uint16 [count], levels) -> bytes`; `decode(data, count, levels)` -> uint16 [count].

    decode raises ValueError for data that no encode call with this count and levels could have made.
    """

    encode: Callable[[np.ndarray, int], bytes]
    decode: Callable[[bytes, int, int], np.ndarray]


def bits_per_symbol(levels: int) -> int:
    """ceil(log2(levels)), at least 1."""
    return max(1, (levels - 1).bit_length())


def packed_size(count: int, levels: int) -> int:
    """Bytes that `pack` makes of `count` symbols."""
    return -(-count // TRITS) if levels == 3 else -(-count * bits_per_symbol(levels) // 8)


def pack(symbols: np.ndarray, levels: int) -> bytes:
    """Fixed-width packing: five trits a byte for three levels, else ceil(log2(levels)) bits, most significant first."""
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
    raw = np.frombuffer(data, np.uint8)
    if levels == 3:
        if raw.size and raw.max() >= 3**TRITS:
            raise ValueError(f"byte {raw.max()} is no group of {TRITS} trits")
        symbols, padding = np.split(_TRITS_OF_BYTE[raw].ravel().astype(np.uint16), [count])
    else:
        width = bits_per_symbol(levels)
        bits, padding = np.split(np.unpackbits(raw), [count * width])
        weights = (1 << np.arange(width - 1, -1, -1)).astype(np.uint16)
        symbols = (bits.reshape(count, width) * weights).sum(axis=1, dtype=np.uint16)
        if symbols.size and symbols.max() >= levels:
            raise ValueError(f"symbol {symbols.max()} of {levels} levels")
    if padding.any():
        raise ValueError("padding is not zero")
    return symbols


def deflate(data: bytes) -> bytes:
    """Raw DEFLATE at level 9, without zlib's header and checksum."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def inflate(data: bytes, size: int) -> bytes:
    """Inverse of `deflate`, never producing more than `size` bytes. ValueError unless it is exactly `size`."""
    decompressor = zlib.decompressobj(-15)
    try:
        result = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged DEFLATE data ({error})") from None
    if len(result) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"DEFLATE data does not end after {size} bytes")
    return result


def _pack_deflate(symbols: np.ndarray, levels: int) -> bytes:
    return deflate(pack(symbols, levels))


def _inflate_unpack(data: bytes, count: int, levels: int) -> np.ndarray:
    return unpack(inflate(data, packed_size(count, levels)), count, levels)


CODECS: dict[str, Codec] = {"pack": Codec(pack, unpack), "deflate": Codec(_pack_deflate, _inflate_unpack)}
