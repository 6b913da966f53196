"""The per-layer table of a report: what was kept of every layer and what it takes on disk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsign.evaluation.pruned_ratio import full_mask, kept_weights
from sparsign.packing.size import Size, sizes
from sparsign.packing.spec import LayerCodes, Node, PackedModel


def layer_rows(packed: PackedModel, unit: str, group: int) -> list[dict[str, Any]]:
    """One row per weighted layer of the uncut network, those of which nothing is left at the end.

    name, op; full_shape, shape: before and after cutting; layout, values: where codes lie and how they become numbers;
    levels: distinct codes, or None for a float layer; scales: how many; parameters and nonzeros: kept, with bias;
    nonzero_weights: without; kept_weights: those in the method's units that are
    left; macs: of one image; float_bytes: uncut, fp32; packed_bytes: of the layer in the file it
    was read from (0 for one that was not read); order0_bytes.
    """
    found, macs = sizes(packed), packed.macs()
    rows = [_row(packed, node, found[name], macs[name], unit, group) for name, node in packed.layers().items()]
    return rows + [_dropped(*entry) for entry in packed.meta.get("original", {}).get("dropped", [])]


def _row(packed: PackedModel, node: Node, size: Size, macs: int, unit: str, group: int) -> dict[str, Any]:
    layer = node.codes
    return {
        "name": node.name,
        "op": node.op,
        "full_shape": list(layer.full_shape),
        "shape": list(layer.shape),
        "layout": layer.layout.name,
        "values": layer.values.name,
        "levels": _levels(layer) if layer.coded else None,
        "scales": layer.values.count(),
        "parameters": size.parameters,
        "nonzeros": size.nonzeros,
        "nonzero_weights": int(np.count_nonzero(layer.codes)),
        "kept_weights": kept_weights(full_mask(layer), unit, group),
        "macs": macs,
        "float_bytes": size.float_bytes,
        "packed_bytes": packed.bytes_on_disk.get(node.name, 0),
        "order0_bytes": size.entropy_bound_bytes,
    }


def _levels(layer: LayerCodes) -> int:
    """Distinct codes, with the 0 of what the layout leaves out."""
    levels = np.unique(layer.codes)
    return len(levels) + (layer.codes.size < math.prod(layer.shape) and 0 not in levels)


def _dropped(name: str, full: list[int], coded: bool) -> dict[str, Any]:
    none = (
        "scales",
        "parameters",
        "nonzeros",
        "nonzero_weights",
        "macs",
        "packed_bytes",
        "order0_bytes",
        "kept_weights",
    )
    return {
        "name": name,
        "op": "conv" if len(full) == 4 else "linear",
        "full_shape": list(full),
        "shape": [0, 0, *full[2:]],
        "layout": "dense",
        "values": "scale" if coded else "float",
        "levels": 0 if coded else None,
        "float_bytes": 4 * int(np.prod(full)),
        **dict.fromkeys(none, 0),
    }
