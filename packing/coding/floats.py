"""Floats as bits: fields for the order-0 coder, irregular layers as signs and magnitudes.

Everything here is lossless for every bit pattern, NaN and negative zero included.
"""

from __future__ import annotations

import numpy as np

FIELDS = {"fp32": (1, 8, 7, 8, 8), "bf16": (1, 8, 7), "fp16": (1, 5, 2, 8), "int8": (8,)}
"""Widths of a number's fields from the highest: sign, exponent, mantissa in bytes at most. int8: value mod 256."""


def to_bits(values: np.ndarray, precision: str) -> np.ndarray:
    """uint32 bit patterns of fp32 values, flattened. ValueError if the precision does not hold them exactly."""
    values = np.ascontiguousarray(values, np.float32).ravel()
    if precision == "fp32":
        return values.view(np.uint32)
    if precision == "bf16":
        bits = values.view(np.uint32) >> 16
    elif precision == "fp16":
        bits = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    else:
        raise ValueError(f"precision {precision!r}, expected fp32, bf16 or fp16")
    if not np.array_equal(from_bits(bits, precision).view(np.uint32), values.view(np.uint32)):
        raise ValueError(f"values that {precision} does not hold exactly: round them before the last evaluation")
    return bits


def from_bits(bits: np.ndarray, precision: str) -> np.ndarray:
    """Inverse of `to_bits`: fp32, 1-D."""
    if precision == "fp16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    if precision not in FIELDS or precision == "int8":
        raise ValueError(f"precision {precision!r}, expected fp32, bf16 or fp16")
    return (bits.astype(np.uint32) << np.uint32(32 - sum(FIELDS[precision]))).view(np.float32)


def split_irregular(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sparse fp32 array as (int8 signs of its shape, for `encode_codes`; uint32 bits of the nonzero magnitudes).

    Only positive zero counts as zero. The magnitudes' bits go to `encode_fields` with `MAGNITUDE_FIELDS`.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    signs = np.where(bits >> 31, -1, bits != 0).astype(np.int8)
    return signs, (bits & 0x7FFFFFFF)[signs != 0]


MAGNITUDE_FIELDS = FIELDS["fp32"][1:]
"""Fields of fp32 without its sign."""


def join_irregular(signs: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Inverse of `split_irregular`: fp32. ValueError unless there is one magnitude for each nonzero sign."""
    coded = signs != 0
    if magnitudes.shape != (np.count_nonzero(coded),):
        raise ValueError(f"{magnitudes.size} magnitudes for {np.count_nonzero(coded)} nonzero values")
    bits = (signs < 0).astype(np.uint32) << np.uint32(31)
    bits[coded] |= magnitudes.astype(np.uint32)
    return bits.view(np.float32)
