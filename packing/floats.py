"""Floating-point numbers to bytes and back at the lowest precision that holds them: no bit pattern is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsign.packing.codecs import deflate, inflate
from sparsign.packing.coding import decode_fields, encode_fields

PRECISIONS: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number, in the order in which they are tried."""
FIELDS = {"fp32": (1, 8, 7, 8, 8), "bf16": (1, 8, 7), "fp16": (1, 5, 2, 8)}
"""Widths of a number's fields from the highest: sign, exponent, mantissa in bytes at most."""


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """uint32 bit patterns of fp32 values, flattened. ValueError if the precision does not hold them exactly."""
    values = np.ascontiguousarray(values, np.float32).ravel()
    if kind == "fp32":
        return values.view(np.uint32)
    if kind == "bf16":
        bits = values.view(np.uint32) >> 16
    elif kind == "fp16":
        bits = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    else:
        raise ValueError(f"precision {kind!r}, expected fp32, bf16 or fp16")
    if not np.array_equal(from_bits(bits, kind).view(np.uint32), values.view(np.uint32)):
        raise ValueError(f"values that {kind} does not hold exactly: round them before the last evaluation")
    return bits


def from_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    """Inverse of `to_bits`: fp32, 1-D."""
    if kind == "fp16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    if kind not in FIELDS:
        raise ValueError(f"precision {kind!r}, expected fp32, bf16 or fp16")
    return (bits.astype(np.uint32) << np.uint32(32 - sum(FIELDS[kind]))).view(np.float32)


def precision(array: np.ndarray) -> str:
    """The first of PRECISIONS that holds every number of an fp32 array, to the bit."""
    for kind in PRECISIONS:
        try:
            with np.errstate(over="ignore"):
                to_bits(array, kind)
        except ValueError:
            continue
        return kind
    raise AssertionError("fp32 holds every fp32 number")


@dataclass(frozen=True)
class FloatCodec:
    """`encode(bits, precision) -> bytes`; `decode(data, count, precision) -> bits`, uint32 bit patterns.

    decode raises ValueError for data that no encode call of so many numbers could have made.
    """

    encode: Callable[[np.ndarray, str], bytes]
    decode: Callable[[bytes, int, str], np.ndarray]


def _raw(bits: np.ndarray, kind: str) -> bytes:
    return bits.astype(f"<u{PRECISIONS[kind]}").tobytes()


def _from_raw(data: bytes, count: int, kind: str) -> np.ndarray:
    width = PRECISIONS[kind]
    if len(data) != count * width:
        raise ValueError(f"{len(data)} bytes for {count} numbers, expected {count * width}")
    return np.frombuffer(data, f"<u{width}").astype(np.uint32)


def _planes(bits: np.ndarray, kind: str) -> bytes:
    """All lowest bytes, then all second bytes, and so on: exponents repeat, low mantissas do not."""
    return deflate(np.frombuffer(_raw(bits, kind), np.uint8).reshape(-1, PRECISIONS[kind]).T.tobytes())


def _from_planes(data: bytes, count: int, kind: str) -> np.ndarray:
    planes = np.frombuffer(inflate(data, count * PRECISIONS[kind]), np.uint8).reshape(PRECISIONS[kind], count)
    return _from_raw(planes.T.tobytes(), count, kind)


FLOAT_CODECS: dict[str, FloatCodec] = {
    "raw": FloatCodec(_raw, _from_raw),
    "planes": FloatCodec(_planes, _from_planes),
    "fields": FloatCodec(
        lambda bits, kind: encode_fields(bits, FIELDS[kind]),
        lambda data, count, kind: decode_fields(data, count, FIELDS[kind]),
    ),
}
