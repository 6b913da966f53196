"""The per-layer table of a report: what was kept of every layer and what it takes on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsign.evaluation.structure import full_mask, kept_weights
from sparsign.packing.codecs import inflate
from sparsign.packing.file import PREAMBLE
from sparsign.packing.size import sizes
from sparsign.packing.spec import LayerCodes, PackedModel

SECTION_KEYS = ("rows", "cols", "floats", "scale", "negative", "kernels", "codes")


def bytes_on_disk(path: Path) -> dict[str, int]:
    """Bytes of every node's sections in a packed file that was read before, by node name; `header` is the rest."""
    data = path.read_bytes()
    _, _, length, inflated, _ = PREAMBLE.unpack_from(data)
    header = json.loads(inflate(data[PREAMBLE.size : PREAMBLE.size + length], inflated))
    lengths = [entry[2] for entry in header["sections"]]
    found = {"header": len(data) - sum(lengths)}
    for _, name, _, _, tensors, codes in header["nodes"]:
        sections = [*tensors.values(), *(v for k, v in (codes or {}).items() if k in SECTION_KEYS)]
        found[name] = sum(lengths[s] for s in sections)
    return found


def layer_rows(packed: PackedModel, path: Path, unit: str, group: int) -> list[dict[str, Any]]:
    """One row per conv and linear layer of the uncut network, those of which nothing is left at the end.

    name, op; full_shape, shape: before and after cutting; levels: distinct codes, or None for a float layer; scales:
    how many; parameters and nonzeros: kept, with bias; nonzero_weights: without; kept_weights: those in the method's
    units that are left; float_bytes: uncut, fp32; packed_bytes: sections of the layer in the file; order0_bytes.
    """
    on_disk, found = bytes_on_disk(path), sizes(packed)
    rows = []
    for name, node in packed.layers().items():
        size = found[name]
        rows.append(
            {
                "name": name,
                "op": node.op,
                "full_shape": list(node.codes.full_shape),
                "shape": list(node.codes.shape),
                **_levels(node.codes),
                "parameters": size.parameters,
                "nonzeros": size.nonzeros,
                "nonzero_weights": int(np.count_nonzero(node.codes.weight())),
                "kept_weights": kept_weights(full_mask(node.codes), unit, group),
                "float_bytes": size.float_bytes,
                "packed_bytes": on_disk[name],
                "order0_bytes": size.entropy_bound_bytes,
            }
        )
    for name, full, coded in packed.meta.get("original", {}).get("dropped", []):
        rows.append(
            {
                "name": name,
                "op": "conv" if len(full) == 4 else "linear",
                "full_shape": list(full),
                "shape": [0, 0, *full[2:]],
                "levels": 0 if coded else None,
                "scales": 0,
                "parameters": 0,
                "nonzeros": 0,
                "nonzero_weights": 0,
                "kept_weights": 0,
                "float_bytes": 4 * int(np.prod(full)),
                "packed_bytes": 0,
                "order0_bytes": 0,
            }
        )
    return rows


def _levels(layer: LayerCodes) -> dict[str, Any]:
    if layer.codes is None:
        return {"levels": None, "scales": 0}
    scales = sum(s.size for s in (layer.scale, layer.negative_scale) if s is not None)
    return {"levels": len(np.unique(layer.dense_codes())), "scales": scales}
