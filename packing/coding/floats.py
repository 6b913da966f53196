"""Floats as bits, in fields for the order-0 coder.

Everything here is lossless for every bit pattern, NaN and negative zero included.
"""

from __future__ import annotations

import numpy as np

FIELDS = {"fp32": (1, 8, 7, 8, 8), "bf16": (1, 8, 7), "fp16": (1, 5, 2, 8)}
"""Widths of a number's fields from the highest: sign, exponent, mantissa in bytes at most."""


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
    if precision not in FIELDS:
        raise ValueError(f"precision {precision!r}, expected fp32, bf16 or fp16")
    return (bits.astype(np.uint32) << np.uint32(32 - sum(FIELDS[precision]))).view(np.float32)
