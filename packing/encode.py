"""One layer of a trained model as LayerCodes: its codes checked against its weight, its layout the cheapest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from sparsign.models.cutting import uncut
from sparsign.packing.layouts import Dense, Gathered, Groups, Irregular, Layout, index_entropy
from sparsign.packing.values import Floats, OneScale, RowGroupScale, RowScale, SignPair, Table, Values
from sparsign.packing.weight import LayerCodes

Scale = Tensor | tuple[Tensor, Tensor] | Mapping[str, Tensor]
Encode = Callable[[nn.Module], tuple[Tensor, Scale] | None]
"""layer -> (integer codes of the weight's shape, how they become numbers), or None for a layer that stays float.

The second is an fp32 tensor: 0-dim (one scale), one number per row ([rows] or [rows, 1, 1, 1]), or [rows, groups, 1, 1]
(groups of equally many consecutive columns); a pair (positive, negative) of the first two kinds; or {"table": levels
[n]}, where codes 1 .. n stand for the levels and 0 for 0.
"""
WIDTHS = (16, 8, 4, 2, 1)
"""Columns per group that are tried as a layout."""
FLOAT_BITS = 32
FEW_LEVELS = 4
"""Up to which a pass per level counts faster than a table, which takes eight bytes a symbol."""


def layer_codes(
    name: str, module: nn.Module, encoded: tuple[Tensor, Scale] | None, rows: np.ndarray, cols: np.ndarray
) -> LayerCodes:
    """The kept rows and columns of a conv or linear layer, told as those of the layer it was cut from, if it was.

    Raises:
        ValueError: a weight that is not exactly the values of its codes, or a scale of another shape.
    """
    whole = uncut(module)
    places = whole.shape, whole.rows.numpy()[rows], whole.cols.numpy()[cols]
    weight = module.weight.detach().float().cpu().numpy()
    cut = np.ix_(rows, cols)
    if encoded is None:
        return laid_out(*places, np.ascontiguousarray(weight[cut]), Floats())
    codes, scale = encoded
    codes = codes.detach().cpu().numpy()
    try:
        values = _values(scale, rows, len(weight), weight.shape[1])
        if isinstance(values, RowGroupScale) and len(whole.cols) < whole.shape[1]:
            raise ValueError("scales of groups of columns, some of which were cut")
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from None
    codes = np.ascontiguousarray(codes[cut])
    codes = codes.astype(np.int8 if np.abs(codes.astype(np.int32)).max(initial=0) <= 127 else np.int16)
    found = laid_out(*places, codes, values)
    if not np.array_equal(found.weight(), weight[cut]):
        worst = np.abs(found.weight() - weight[cut]).max()
        raise ValueError(f"layer {name}: its weight is not scale * codes (off by up to {worst:.3g})")
    return found


def laid_out(
    full_shape: tuple[int, ...], rows: np.ndarray, cols: np.ndarray, dense: np.ndarray, values: Values
) -> LayerCodes:
    """Codes (or fp32 numbers) of the cut weight's shape in the layout that takes least at their empirical entropy."""
    layout = min(_layouts(dense), key=lambda layout: _bits(layout, dense))
    return LayerCodes(tuple(full_shape), rows, cols, layout.take(dense), values, layout)


def _layouts(dense: np.ndarray) -> Iterator[Layout]:
    """Layouts that leave something out, those that say more with fewer bits first; and the dense one."""
    yield Dense(dense.shape)
    nonzero = dense != 0
    kernels = nonzero.reshape(*dense.shape[:2], -1).any(axis=2)
    counts = kernels.sum(axis=1)
    if counts.min() == counts.max() and 0 < counts[0] < dense.shape[1]:
        yield Gathered(dense.shape, kernels)
    for width in WIDTHS:
        if dense.shape[1] % width == 0 and (width > 1 or dense.ndim > 2):
            mask = kernels.reshape(len(kernels), -1, width).any(axis=2)
            if not mask.all():
                yield Groups(dense.shape, mask)
    if dense.dtype == np.float32 and not nonzero.all():  # of codes it takes what the dense layout takes
        yield Irregular(dense.shape, nonzero)


def _bits(layout: Layout, dense: np.ndarray) -> float:
    stored = layout.take(dense)
    bits = FLOAT_BITS * stored.size if stored.dtype == np.float32 else entropy_bits(stored)
    if isinstance(layout, Gathered):
        rows, cols, read = *layout.shape[:2], layout.stored_shape()[1]
        return bits + rows * math.log2(math.comb(cols, read))
    return bits + index_entropy(layout.mask)


def entropy_bits(symbols: np.ndarray) -> float:
    """count * empirical entropy of an integer or bool array, in bits."""
    if not symbols.size:
        return 0.0
    least, most = int(symbols.min()), int(symbols.max())
    if most - least < FEW_LEVELS:
        counts = np.array([np.count_nonzero(symbols == level) for level in range(least, most + 1)])
    else:
        counts = np.bincount(symbols.ravel().astype(np.int64) - least)
    counts = counts[counts > 0]
    return float((counts * np.log2(symbols.size / counts)).sum())


def _values(scale: Scale, rows: np.ndarray, filters: int, columns: int) -> Values:
    if isinstance(scale, Mapping):
        if set(scale) != {"table"}:
            raise ValueError(f"codes become numbers by {sorted(scale)}, expected 'table'")
        return Table(_numpy(scale["table"]).reshape(-1))
    if isinstance(scale, tuple):
        pair = [_per_row(_numpy(s), filters) for s in scale]
        return SignPair(*(s[rows] if s.ndim else s for s in pair))
    array = _numpy(scale)
    if array.ndim >= 2 and len(array) == filters and array[0].size == array.shape[1] > 1:
        groups = array.shape[1]
        if columns % groups:
            raise ValueError(f"scale of shape {list(array.shape)}, expected groups that divide {columns} columns")
        return RowGroupScale(array.reshape(filters, groups)[rows], columns // groups)
    array = _per_row(array, filters)
    return RowScale(array[rows]) if array.ndim else OneScale(array)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _per_row(array: np.ndarray, filters: int) -> np.ndarray:
    if array.ndim and array.size != filters:
        raise ValueError(f"scale of shape {list(array.shape)}, expected one number or {filters}")
    return array.reshape(filters) if array.ndim else array
