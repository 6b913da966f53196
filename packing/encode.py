"""One layer of a trained model as LayerCodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from sparsign.packing.spec import LayerCodes, scaled

Encode = Callable[[nn.Module], tuple[Tensor, Tensor | tuple[Tensor, Tensor]] | None]
"""layer -> (integer codes of the weight's shape, fp32 scale: 0-dim, one per filter, or a (positive, negative) pair of
such), or None for a layer that stays float."""


def layer_codes(
    name: str,
    module: nn.Module,
    encoded: tuple[Tensor, Tensor | tuple[Tensor, Tensor]] | None,
    rows: np.ndarray,
    cols: np.ndarray,
    groups: int,
) -> LayerCodes:
    """The kept rows and columns of a conv or linear layer.

    Args:
        encoded: what an `Encode` gives for the layer.
        groups: of the cut conv; a weight without groups whose filters all read equally many columns is gathered.

    Raises:
        ValueError: a weight that is not exactly scale * codes.
    """
    weight = module.weight.detach().float().cpu().numpy()
    cut = np.ix_(rows, cols)
    if encoded is None:
        return LayerCodes(weight.shape, rows, cols, floats=np.ascontiguousarray(weight[cut]))
    codes, scale = encoded
    codes = codes.detach().cpu().numpy()
    scales = [_per_row(s, name, len(weight)) for s in (scale if isinstance(scale, tuple) else (scale,))]
    if not np.array_equal(scaled(codes, *scales), weight):
        worst = np.abs(scaled(codes, *scales) - weight).max()
        raise ValueError(f"layer {name}: its weight is not scale * codes (off by up to {worst:.3g})")
    codes = np.ascontiguousarray(codes[cut])
    codes = codes.astype(np.int8 if np.abs(codes.astype(np.int32)).max() <= 127 else np.int16)
    scales = [s[rows] if s.ndim else s for s in scales]
    gather = _regular_gather(codes) if groups == 1 else None
    if gather is not None:
        codes = codes[np.arange(len(rows))[:, None], gather]
    return LayerCodes(weight.shape, rows, cols, codes, *scales, gather=gather)


def _per_row(scale: Tensor, name: str, rows: int) -> np.ndarray:
    array = scale.detach().float().cpu().numpy()
    if array.ndim and array.size != rows:
        raise ValueError(f"layer {name}: scale of shape {list(array.shape)}, expected one number or {rows}")
    return array.reshape(rows) if array.ndim else array


def _regular_gather(codes: np.ndarray) -> np.ndarray | None:
    """Columns [rows, D] that filters read, where each has exactly D < cols nonzero kernels (or weights)."""
    read = codes.reshape(*codes.shape[:2], -1).any(axis=2)
    counts = read.sum(axis=1)
    if counts.min() != counts.max() or counts[0] in (0, read.shape[1]):
        return None
    return np.nonzero(read)[1].reshape(len(codes), -1)
