"""The coders' door: checks what comes in, then runs the compiled coder or, without it, the same steps in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsign.packing.coding import fields, mixing

try:
    from sparsign.packing import _coder
except ImportError:  # not built: the bits are the same
    _coder = None

COMPILED = _coder is not None
MAX_CODE = (1 << mixing.WIDEST - 1) - 1
MAX_FIELD = 16
"""Bits of the widest field: its tree has 65,536 slots."""


def encode_codes(layers: Sequence[np.ndarray], masks: Sequence[np.ndarray | None] | None = None) -> bytes:
    """One stream of all layers' codes: what one layer teaches serves the next.

    Args:
        layers: integers of magnitude at most 32,767 and shape [rows, cols, kh, kw], [rows, cols] or [count]. 0 and 1
            (bitmaps), -1 and 1, and small magnitudes are recognised.
        masks: for each layer None, or bool [rows, cols]: kernels that are coded; codes elsewhere are 0. The decoder
            has to be given the same.

    Raises:
        ValueError: a shape, a mask or a code other than that.
    """
    coded = []
    for layer, mask in zip(layers, _masks(masks, len(layers)), strict=True):
        if layer.size and not -MAX_CODE <= layer.min() <= layer.max() <= MAX_CODE:
            raise ValueError(f"codes {layer.min()} .. {layer.max()}, expected at most {MAX_CODE} in magnitude")
        codes = np.array(layer, np.int16, order="C").reshape(_four_axes(layer.shape))
        kernels = _kernels(mask, codes.shape)
        if kernels is not None and codes[kernels == 0].any():
            raise ValueError("nonzero codes in kernels that the mask leaves out")
        coded.append((codes, kernels, _kind(codes if kernels is None else codes[kernels != 0])))
    return (_coder or mixing).encode_codes(coded)


def decode_codes(
    data: bytes, shapes: Sequence[tuple[int, ...]], masks: Sequence[np.ndarray | None] | None = None
) -> list[np.ndarray]:
    """Inverse of `encode_codes`: int16 arrays.

    Takes 2 bytes and bounded time for each code that the shapes announce, whatever the data: the caller bounds shapes.

    Raises:
        ValueError: data that `encode_codes` cannot have made of such layers.
    """
    coded = []
    for shape, mask in zip(shapes, _masks(masks, len(shapes)), strict=True):
        codes = np.zeros(_four_axes(shape), np.int16)
        coded.append((codes, _kernels(mask, codes.shape), mixing.TERNARY))
    (_coder or mixing).decode_codes(bytes(data), coded)
    return [codes.reshape(shape) for (codes, _, _), shape in zip(coded, shapes, strict=True)]


def encode_fields(numbers: np.ndarray, widths: Sequence[int]) -> bytes:
    """Bytes of unsigned numbers of sum(widths) bits, each field of them coded near its order-0 entropy or plain.

    Args:
        numbers: unsigned integers, flattened.
        widths: bits of each field from the highest, 1 .. 16 each, 32 in all. For symbols of so many levels:
            [bits_per_symbol(levels)].

    Raises:
        ValueError: widths or numbers other than that.
    """
    given, widths = np.asarray(numbers).ravel(), _widths(widths)
    if given.size and not 0 <= given.min() <= given.max() < 1 << sum(widths):
        raise ValueError(f"numbers {given.min()} .. {given.max()} in {sum(widths)} bits")
    return (_coder or fields).encode_fields(given.astype(np.uint32), widths)


def decode_fields(data: bytes, count: int, widths: Sequence[int]) -> np.ndarray:
    """Inverse of `encode_fields`: uint8 [count] up to 8 bits, else uint32. ValueError for data it cannot have made."""
    widths = _widths(widths)
    numbers = np.zeros(count, np.uint8 if sum(widths) <= 8 else np.uint32)
    (_coder or fields).decode_fields(bytes(data), numbers, widths)
    return numbers


def _masks(masks: Sequence[np.ndarray | None] | None, layers: int) -> Sequence[np.ndarray | None]:
    return [None] * layers if masks is None else masks


def _four_axes(shape: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"codes of shape {list(shape)}, expected 1 to 4 axes")
    return (1, *shape, 1, 1) if len(shape) == 1 else (*shape, 1, 1)[:4]


def _kernels(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    if math.prod(mask.shape) != math.prod(shape[:2]):
        raise ValueError(f"a mask of shape {list(mask.shape)} for codes of shape {list(shape)}")
    return np.ascontiguousarray(mask.reshape(shape[:2]) != 0, np.uint8)


def _kind(coded: np.ndarray) -> int:
    """The narrowest kind of layer that holds these codes."""
    least, most = int(coded.min(initial=0)), int(coded.max(initial=0))
    if least >= 0 and most <= 1:
        return mixing.FLAGS
    widest = max(-least, most)
    if widest == 1:
        return mixing.SIGNS if coded.all() else mixing.TERNARY
    return 1 + widest.bit_length()


def _widths(widths: Sequence[int]) -> list[int]:
    if not all(1 <= width <= MAX_FIELD for width in widths) or sum(widths) > 32:
        raise ValueError(f"fields of {list(widths)} bits, expected 1 .. {MAX_FIELD} each, 32 in all")
    return list(widths)
