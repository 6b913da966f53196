"""How much of a network pruning took away, in the unit its method counts."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np

from sparsign.packing.spec import LayerCodes, PackedModel

UNITS = ("filter", "channel", "kernel", "column", "group", "matrix", "weight")
GROUP = 16
"""Input channels of a WPC group where the file does not say (lab code: 16 on CIFAR)."""


_MASKS: WeakKeyDictionary[LayerCodes, np.ndarray] = WeakKeyDictionary()


def full_mask(layer: LayerCodes) -> np.ndarray:
    """Bool of the uncut weight's shape, not to be written to: True where a nonzero weight is left.

    Decoded once for each layer: several tables of a report count in it.
    """
    if layer not in _MASKS:
        mask = np.zeros(layer.full_shape, bool)
        mask[np.ix_(layer.rows, layer.cols)] = layer.nonzero()
        mask.flags.writeable = False
        _MASKS[layer] = mask
    return _MASKS[layer]


def counted(packed: PackedModel, unit: str) -> Iterator[tuple[str, np.ndarray]]:
    """(layer name, mask of the uncut weight) of every layer that the pruned ratio is over.

    These are the layers with codes, those of which nothing is left included, or all layers where none has codes (pruned
    but not quantised); of them the convs, where there are any, unless single weights are counted (our choice: the
    papers' ratios of filters are over convs).
    """
    layers = [(name, node.codes.coded, node.codes) for name, node in packed.layers().items()]
    dropped = [(n, bool(coded), tuple(full)) for n, full, coded in packed.meta.get("original", {}).get("dropped", [])]
    found = [(name, coded, full_mask(codes)) for name, coded, codes in layers]
    found += [(name, coded, np.zeros(full, bool)) for name, coded, full in dropped]
    if any(coded for _, coded, _ in found):
        found = [layer for layer in found if layer[1]]
    if unit != "weight" and any(mask.ndim == 4 for _, _, mask in found):
        found = [layer for layer in found if layer[2].ndim == 4]
    yield from ((name, mask) for name, _, mask in found)


def alive(mask: np.ndarray, unit: str, group: int = GROUP) -> np.ndarray:
    """Bool per unit of one layer: whether any of its weights is left.

    filter: row of the GEMM matrix; column: the same place in all filters; channel: one input channel; kernel: one input
    channel of one filter; group: one filter, `group` consecutive input channels (the largest divisor up to it) and the
    whole kernel; matrix: a weight in a nonempty row and a nonempty column of the GEMM matrix, where filters and columns
    are both pruned; weight: itself. A zero in a unit that is left (a ternary quantizer's) is not pruned.
    """
    rows, channels = mask.shape[:2]
    kernels = mask.reshape(rows, channels, -1)
    if unit == "filter":
        return kernels.any(axis=(1, 2))
    if unit == "column":
        return kernels.any(axis=0).ravel()
    if unit == "channel":
        return kernels.any(axis=(0, 2))
    if unit == "kernel":
        return kernels.any(axis=2).ravel()
    if unit == "matrix":
        flat = mask.reshape(rows, -1)
        return np.outer(flat.any(axis=1), flat.any(axis=0)).ravel()
    if unit == "group":
        size = next(d for d in range(min(group, channels), 0, -1) if channels % d == 0)
        return mask.reshape(rows, channels // size, -1).any(axis=2).ravel()
    return mask.ravel()


def kept_weights(mask: np.ndarray, unit: str, group: int = GROUP) -> int:
    """Weights of one layer in the units that are left: of filters, columns and channels, nonempty rows x columns."""
    if unit in ("kernel", "group", "weight"):
        flags = alive(mask, unit, group)
        return int(flags.sum()) * (mask.size // flags.size)
    return int(alive(mask, "matrix").sum())


def pruned_ratio(packed: PackedModel, unit: str, group: int = GROUP) -> float:
    """Fraction of units of which nothing is left: STQ-A's PFR for filters (paper), STQ-B's for kernels (inferred).

    Raises:
        ValueError: an unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f"pfr_unit={unit!r}: expected one of {', '.join(UNITS)}")
    flags = [alive(mask, unit, group) for _, mask in counted(packed, unit)]
    total = sum(f.size for f in flags)
    return 1 - sum(int(f.sum()) for f in flags) / total if total else 0.0


def reached_ratio(packed: PackedModel, unit: str, group: int = GROUP) -> float:
    """The same, but of single weights without a ternary quantizer's zeros, where the file tells how many were left.

    Raises:
        ValueError: an unknown unit, or more weights left than there were.
    """
    left = packed.meta.get("compressor", {}).get("left")
    if unit != "weight" or left is None:
        return pruned_ratio(packed, unit, group)
    total = sum(mask.size for _, mask in counted(packed, unit))
    if not 0 <= left <= total:
        raise ValueError(f"compressor.left={left}: expected a value in [0, {total}], the weights of its layers")
    return 1 - left / total if total else 0.0
