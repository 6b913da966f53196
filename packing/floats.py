"""Floating-point numbers to bytes and back, without loss: at the lowest precision that holds them, in byte planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsign.packing.codecs import deflate, inflate

PRECISIONS: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number, lowest first."""


def precision(array: np.ndarray) -> str:
    """The first of PRECISIONS that holds every number of an fp32 array, to the bit."""
    return next(kind for kind in PRECISIONS if _same(from_words(to_words(array, kind), kind), array))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), np.ascontiguousarray(b, np.float32).ravel().view(np.uint32))


def to_words(array: np.ndarray, kind: str) -> np.ndarray:
    """uint16 or uint32 [count]: the bits of the numbers at a precision; bf16 drops the lower half."""
    flat = np.ascontiguousarray(array, np.float32).ravel()
    if kind == "fp16":
        with np.errstate(over="ignore"):
            return flat.astype(np.float16).view(np.uint16)
    bits = flat.view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


def from_words(words: np.ndarray, kind: str) -> np.ndarray:
    """fp32 [count]: inverse of `to_words`."""
    if kind == "fp16":
        return words.astype(np.uint16).view(np.float16).astype(np.float32)
    bits = words.astype(np.uint32)
    return (bits << 16 if kind == "bf16" else bits).view(np.float32)


@dataclass(frozen=True)
class FloatCodec:
    """`encode(words) -> (parameters, bytes)`; `decode(data, count, width, parameters) -> words` of `width` bytes each.

    decode raises ValueError for data that no encode call with this count and width could have made.
    """

    encode: Callable[[np.ndarray], tuple[list[int], bytes]]
    decode: Callable[[bytes, int, int, list[int]], np.ndarray]


def _raw(words: np.ndarray) -> tuple[list[int], bytes]:
    return [], words.astype(f"<u{words.itemsize}").tobytes()


def _from_raw(data: bytes, count: int, width: int, parameters: list[int]) -> np.ndarray:
    if len(data) != count * width:
        raise ValueError(f"{len(data)} bytes for {count} numbers, expected {count * width}")
    return np.frombuffer(data, f"<u{width}").astype(f"u{width}")


def _planes(words: np.ndarray) -> tuple[list[int], bytes]:
    """All lowest bytes, then all second bytes, and so on: exponents repeat, low mantissas do not."""
    return [], deflate(np.frombuffer(_raw(words)[1], np.uint8).reshape(-1, words.itemsize).T.tobytes())


def _from_planes(data: bytes, count: int, width: int, parameters: list[int]) -> np.ndarray:
    planes = np.frombuffer(inflate(data, count * width), np.uint8).reshape(width, count)
    return _from_raw(planes.T.tobytes(), count, width, parameters)


FLOAT_CODECS: dict[str, FloatCodec] = {"raw": FloatCodec(_raw, _from_raw), "planes": FloatCodec(_planes, _from_planes)}
