"""BNN and BinaryConnect: weights sign(w) without a scale (Courbariaux et al., 2015 and 2016: paper)."""

from __future__ import annotations

from dataclasses import dataclass

from sparsign.compressors.parts.binary import BinaryMethod


@dataclass
class BNN(BinaryMethod):
    """Binary weights from the first step on; form fbin is BNN, form wbin is BinaryConnect.

    As the baseline of STQ-Nets: its recipe, its float layers (our choice, as in the tables that it compares with).
    """
