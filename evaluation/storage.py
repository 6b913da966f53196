"""What unstructured sparsity would have to pay for its indices, on the real tensors of a packed network.

ADMM-NN-S demands that storage be compared with quantisation on and indices counted (paper); the accounting itself is
our choice, the one usual since EIE and Deep Compression: relative indices with fillers, or CSR.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sparsign.packing.codecs import bits_per_symbol
from sparsign.packing.spec import LayerCodes, PackedModel
from sparsign.packing.structure import irregular_index_bits

FLOAT_BITS = 32


def layer_storage(layer: LayerCodes) -> dict[str, Any]:
    """Bits of one layer stored dense, cut, and irregular.

    value_bits: b, bits of one code (32 for floats); dense_bits: all weights of the uncut layer at b; structured_bits:
    the kept rows and columns at b, no index (or, where that is less, without empty columns of the im2col matrix, a flag
    bit for each column); irregular_bits: nonzeros and fillers at b + index_bits, the best width of the relative index;
    csr_bits; per_weight_bits: the cheaper of the two per nonzero, None without nonzeros; best: which of the three is
    least. A filler gets no code of its own, which favours irregular.
    """
    weight = layer.weight()
    nonzero = weight != 0
    # irregular formats store no zeros, so zero needs no level of its own there; at least one bit for the sign or value
    levels = None if layer.codes is None else np.unique(layer.codes)
    value_bits = FLOAT_BITS if levels is None else bits_per_symbol(len(levels))
    sparse_bits = FLOAT_BITS if levels is None else bits_per_symbol(max(1, int((levels != 0).sum())))
    matrix = nonzero.reshape(len(nonzero), -1)
    irregular = irregular_index_bits(matrix, sparse_bits)
    columns = matrix.any(axis=0)
    filled = None if levels is None else layer.dense_codes().reshape(matrix.shape)[:, columns]
    filled_bits = FLOAT_BITS if levels is None else bits_per_symbol(len(np.unique(filled)))
    nonzeros = int(nonzero.sum())
    kinds = {
        "dense": int(np.prod(layer.full_shape)) * value_bits,
        "structured": min(weight.size * value_bits, len(matrix) * int(columns.sum()) * filled_bits + columns.size),
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
