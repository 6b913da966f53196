"""Which engine runs a packed network on this machine."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.spec import PackedModel


class Engine(Protocol):
    """Runs a packed network: normalised fp32 images [N, C, H, W] in, fp32 logits [N, classes] out."""

    name: str
    isa: str

    def __call__(self, images: Tensor) -> Tensor: ...


def load_engine(packed: PackedModel) -> Engine:
    """The fastest engine this machine can run the network with."""
    return ReferenceEngine(packed)
