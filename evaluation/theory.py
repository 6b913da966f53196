"""The speed-up a paper would print, kept apart from what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsign.packing.spec import LayerCodes, PackedModel

BINARY, SCALED, FLOAT = 64, 58, 1


def theory(packed: PackedModel, pfr: float | None) -> dict[str, Any]:
    """STQ-Nets' theoretical speed-up of a layer: S1 * S2 (paper).

    S1 = 64 for binary inputs and weights without scale factors (BNN), 58 with them (XNOR-Net), and 1 here where inputs
    are float (our choice: no bit operations then). S2 = 1 / (1 - pfr), with pfr the fraction of pruned structure (0
    where single weights were pruned); S2 is None for a network of which nothing is left.
    """
    s1, why = _s1(packed)
    s2 = None if pfr is None or pfr >= 1 else 1 / (1 - pfr)
    return {
        "label": "theoretical",
        "s1": s1,
        "s1_reason": why,
        "s2": s2,
        "speedup": None if s2 is None else s1 * s2,
        "source": "STQ-Nets, S1 * S2 per layer; not measured",
    }


def _s1(packed: PackedModel) -> tuple[int, str]:
    readers = packed.reads_signs()
    binary: list[LayerCodes] = []
    for name, node in packed.layers().items():
        if node.codes.coded:
            signs = node.codes.values.signed_scales(1) is not None and np.abs(node.codes.codes).max(initial=0) <= 1
            if name not in readers or not signs:
                return FLOAT, "some coded layer reads float inputs"
            binary.append(node.codes)
    if not binary:
        return FLOAT, "no layer has binary weights and inputs"
    if all((scale == 1).all() for codes in binary for scale in codes.values.arrays().values()):
        return BINARY, "binary weights and inputs, no scale factors"
    return SCALED, "binary weights and inputs, with scale factors"
