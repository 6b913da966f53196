"""What unstructured sparsity would have to pay for its indices, on the real tensors of a packed network.

ADMM-NN-S demands that storage be compared with quantisation on and indices counted (paper); the accounting itself is
our choice, the one usual since EIE and Deep Compression: relative indices with fillers, or CSR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sparsign.packing.codecs import bits_per_symbol
from sparsign.packing.spec import LayerCodes, PackedModel

FLOAT_BITS = 32


@dataclass(frozen=True)
class IrregularBits:
    """Storage of an unstructured layer, values and indices, in bits.

    Attributes:
        index_bits: best width r of the relative index.
        entries: stored entries at that r: nonzeros and filler zeros.
        relative: entries * (bits + r).
        csr: nonzeros * (bits + ceil(log2(columns))) + (rows + 1) row pointers of ceil(log2(nonzeros + 1)) bits.
    """

    index_bits: int
    entries: int
    relative: int
    csr: int


def irregular_index_bits(mask: np.ndarray, bits: int) -> IrregularBits:
    """What an unstructured mask [rows, ...] costs with `bits` per value (our choice: the accounting usual since EIE).

    The relative index stores the run of zeros before each nonzero, along the flattened layer, in r bits; a run of g
    zeros needs floor(g / 2^r) filler entries, counted exactly. The r in 2..12 that costs least is taken, which favours
    unstructured pruning.
    """
    places = np.flatnonzero(mask)
    runs = np.diff(places, prepend=-1) - 1
    entries = {r: len(places) + int((runs >> r).sum()) for r in range(2, 13)}
    best = min(entries, key=lambda r: entries[r] * (bits + r))
    columns = math.ceil(math.log2(max(2, mask[0].size)))
    pointers = (len(mask) + 1) * math.ceil(math.log2(len(places) + 1))
    return IrregularBits(best, entries[best], entries[best] * (bits + best), len(places) * (bits + columns) + pointers)


def layer_storage(layer: LayerCodes) -> dict[str, Any]:
    """Bits of one layer stored dense, cut, and irregular.

    value_bits: b, bits of one code (32 for floats); dense_bits: all weights of the uncut layer at b; structured_bits:
    the kept rows and columns at b, no index (or, where that is less, without empty columns of the im2col matrix, a flag
    bit for each column); irregular_bits: nonzeros and fillers at b + index_bits, the best width of the relative index;
    csr_bits; per_weight_bits: the cheaper of the two per nonzero, None without nonzeros; best: which of the three is
    least. A filler gets no code of its own, which favours irregular.
    """
    nonzero = layer.nonzero()
    codes = layer.dense_codes() if layer.coded else None
    # irregular formats store no zeros, so zero needs no level of its own there; at least one bit for the sign or value
    levels = None if codes is None else np.unique(codes)
    value_bits = FLOAT_BITS if levels is None else bits_per_symbol(len(levels))
    sparse_bits = FLOAT_BITS if levels is None else bits_per_symbol(max(1, int((levels != 0).sum())))
    matrix = nonzero.reshape(len(nonzero), -1)
    irregular = irregular_index_bits(matrix, sparse_bits)
    columns = matrix.any(axis=0)
    filled = FLOAT_BITS if codes is None else bits_per_symbol(len(np.unique(codes.reshape(matrix.shape)[:, columns])))
    nonzeros = int(nonzero.sum())
    kinds = {
        "dense": int(np.prod(layer.full_shape)) * value_bits,
        "structured": min(nonzero.size * value_bits, len(matrix) * int(columns.sum()) * filled + columns.size),
        "irregular": min(irregular.relative, irregular.csr),
    }
    return {
        "value_bits": value_bits,
        "nonzeros": nonzeros,
        "dense_bits": kinds["dense"],
        "structured_bits": kinds["structured"],
        "irregular_bits": irregular.relative,
        "csr_bits": irregular.csr,
        "index_bits": irregular.index_bits,
        "fillers": irregular.entries - nonzeros,
        "per_weight_bits": kinds["irregular"] / nonzeros if nonzeros else None,
        "best": min(kinds, key=kinds.__getitem__),
    }


def storage(packed: PackedModel) -> dict[str, dict[str, Any]]:
    """`layer_storage` of every conv and linear layer, by name."""
    return {name: layer_storage(node.codes) for name, node in packed.layers().items()}


def storage_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """What `storage` found, for reading: bytes per layer and the cheapest format."""
    table = Table(title="Bytes with indices counted", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("layer", "dense", "cut", "relative index", "CSR", "fillers", "cheapest"):
        table.add_column(column, justify="left" if column in ("layer", "cheapest") else "right", overflow="fold")
    for name, row in rows.items():
        bits = (row["dense_bits"], row["structured_bits"], row["irregular_bits"], row["csr_bits"])
        table.add_row(name, *(f"{-(-b // 8):,}" for b in bits), f"{row['fillers']:,}", row["best"])
    return table
