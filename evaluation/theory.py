"""The speed-ups a paper would print, kept apart from what was measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsign.evaluation.pruned_ratio import GROUP, counted, full_mask, kept_weights
from sparsign.packing.spec import Node, PackedModel

BINARY, SCALED, FLOAT = 64, 58, 1


def theory(packed: PackedModel, unit: str, pfr: float, group: int = GROUP) -> dict[str, Any]:
    """STQ-Nets' theoretical speed-up S1 * S2 (paper), of a layer and of the network.

    Layer-wise is the paper's: S1 = 64 for binary inputs and weights without scale factors (BNN), 58 with them
    (XNOR-Net), and 1 here where inputs are float (our choice: no bit operations then); S2 = 1 / (1 - pfr), with pfr the
    fraction of the method's units that are gone (1 where single weights are: no hardware skips them). `s2_macs` is the
    same by multiply-accumulates of the layers that pfr counts: large layers may keep more than small ones.
    Network-wise is a bound on the whole: all multiply-accumulates of the uncut network over those that are left, each
    layer's divided by its own S1, so that float stems, shortcuts and classifiers count (S1 = 1). Layers of which
    nothing is left are in neither sum: their image size is gone with them. None where nothing is left.
    """
    macs, signs = _macs(packed, unit, group), packed.reads_signs()
    s1 = {node.name: _s1(node, signs)[0] for node in packed.layers().values()}
    names = [name for name, _ in counted(packed, unit) if name in macs]
    slowest = min(names, key=lambda name: s1[name], default=None)
    layer_s1, why = (FLOAT, "no layer is counted") if slowest is None else _s1(packed.layers()[slowest], signs)
    units = 0.0 if unit == "weight" else pfr
    s2 = None if units >= 1 else 1 / (1 - units)
    s2_macs = _ratio(sum(macs[n][0] for n in names), sum(macs[n][1] for n in names))
    return {
        "label": "theoretical",
        "s1": layer_s1,
        "s1_reason": why,
        "s2": s2,
        "layer_speedup": None if s2 is None else layer_s1 * s2,
        "s2_macs": s2_macs,
        "layer_speedup_macs": None if s2_macs is None else layer_s1 * s2_macs,
        "macs": sum(before for before, _ in macs.values()),
        "kept_macs": sum(after for _, after in macs.values()),
        "network_speedup": _ratio(
            sum(before for before, _ in macs.values()), sum(after / s1[name] for name, (_, after) in macs.items())
        ),
        "source": "STQ-Nets, S1 * S2; not measured",
    }


def _ratio(before: float, after: float) -> float | None:
    return before / after if after else None


def _macs(packed: PackedModel, unit: str, group: int) -> dict[str, tuple[int, int]]:
    """(of the uncut layer, of what is left) multiply-accumulates of one image, by layer; nonempty rows x columns where
    single weights are pruned."""
    shapes, found = packed.shapes, {}
    unit = "matrix" if unit == "weight" else unit
    for name, node in packed.layers().items():
        places = math.prod(shapes[name][1:])
        kept = kept_weights(full_mask(node.codes), unit, group)
        found[name] = (places * math.prod(node.codes.full_shape), places * kept)
    return found


def _s1(node: Node, sign_readers: set[str]) -> tuple[int, str]:
    """(S1 of one layer, why)."""
    layer = node.codes
    if not layer.coded:
        return FLOAT, "float weights"
    if layer.values.signed_scales(1) is None or np.abs(layer.codes).max(initial=0) > 1:
        return FLOAT, "weights of more than three levels"
    if node.name not in sign_readers:
        return FLOAT, "float inputs"
    if all((scale == 1).all() for scale in layer.values.arrays().values()):
        return BINARY, "binary weights and inputs, no scale factors"
    return SCALED, "binary weights and inputs, with scale factors"
