"""How much structure pruning took away, and what unstructured pruning would have to pay for its indices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsign.packing.spec import PackedModel


@dataclass(frozen=True)
class Structure:
    """Filters and 2-D kernels of the coded conv layers: of the uncut network, and those that are gone or all zero."""

    filters: int = 0
    filters_removed: int = 0
    kernels: int = 0
    kernels_removed: int = 0

    @property
    def pfr(self) -> float:
        """Pruned filter ratio #{k : W_k = 0} / K (STQ-Nets, table 1: paper)."""
        return self.filters_removed / self.filters if self.filters else 0.0

    @property
    def kernel_pfr(self) -> float:
        """Fraction of all-zero kernels W_{k,i}, which STQ-B reports as PFR (inferred from its speed-up equation)."""
        return self.kernels_removed / self.kernels if self.kernels else 0.0


def layer_structure(packed: PackedModel) -> dict[str, Structure]:
    """Structure of every coded conv layer, those of which nothing is left included."""
    found = {}
    for node in packed.nodes:
        if node.is_conv and node.codes.codes is not None:
            filters, columns = node.codes.full_shape[:2]
            mask = node.codes.kernel_mask() & node.codes.dense_codes().any(axis=(2, 3))
            alive = int(mask.any(axis=1).sum())
            found[node.name] = Structure(
                filters, filters - alive, filters * columns, filters * columns - int(mask.sum())
            )
    for name, full, coded in packed.meta.get("original", {}).get("dropped", []):
        if coded and len(full) == 4:
            found[name] = Structure(full[0], full[0], full[0] * full[1], full[0] * full[1])
    return found


def structure(packed: PackedModel) -> Structure:
    """The network's totals."""
    layers = layer_structure(packed).values()
    return Structure(*(sum(getattr(s, f) for s in layers) for f in Structure.__dataclass_fields__))


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
