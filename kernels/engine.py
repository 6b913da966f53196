"""Which engine runs a packed network on this machine: the compiled one, or the reference where there is none."""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsign.kernels.lower import CannotRun, Lowered
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.spec import PackedModel

ISA_VARIABLE = "SPARSIGN_ISA"
"""Environment variable naming the instruction set, as the argument `isa` does."""
REFERENCE = "reference"


def is_ours(engine: str) -> bool:
    """Whether a name in a report's rows of speed is that of a packed network's engine, not of a rival."""
    return engine.split(",")[0].split(" ")[0] in (NativeEngine.name, ReferenceEngine.name)


class Engine(Protocol):
    """Runs a packed network: normalised fp32 images [N, C, H, W] in, fp32 logits [N, classes] out."""

    name: str
    isa: str

    def __call__(self, images: Tensor) -> Tensor: ...


class NativeEngine:
    """Runs a packed network behind one call of the compiled engine.

    Sums over signs are exact integers; what follows them (scale, bias, batch norm, sums) rounds step by step as the
    reference does. Layers that read floats add up in another order than torch, so that their outputs differ in the
    last bits. The result is the same for any number of threads and any batch.

    Raises:
        CannotRun: an operation that the compiled engine has no step for.
        ValueError: the packed model does not hang together, or this CPU lacks the instruction set that was named.
    """

    name = "native"

    def __init__(self, packed: PackedModel, isa: str = "", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}, expected at least 1, or None for torch's number")
        self.packed, self.threads = packed, threads
        self._network = Lowered(_native_or_raise(), packed, isa).network
        self.isa: str = self._network.isa

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised fp32 images [N, C, H, W]."""
        images = checked(images, self.packed)
        logits = torch.empty(len(images), self._network.classes)
        threads = self.threads or torch.get_num_threads()
        self._network.run(images.data_ptr(), len(images), logits.data_ptr(), threads)
        return logits


class Probe:
    """The same kernels with every value kept: for proofs, one image at a time."""

    def __init__(self, packed: PackedModel, isa: str = "") -> None:
        self._lowered = Lowered(_native_or_raise(), packed, isa, probe=True)
        self.packed, self.isa = packed, self._lowered.network.isa

    def sums(self, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(signs read [C, H, W], integer sums made [rows, OH, OW]) of every layer over signs, by node name.

        image: normalised fp32 [C, H, W]. Both are fp32 tensors; sums are over codes * (+1 | -1), zeros at the border.
        """
        array = checked(image[None], self.packed)[0].detach().numpy()
        found = {}
        for name, (source, sums) in self._lowered.sums.items():
            found[name] = tuple(self._read(array, value) for value in (self._lowered.bits[source], sums))
        return found

    def _read(self, image: np.ndarray, value: int) -> Tensor:
        network = self._lowered.network
        c, h, w = network.shape(value)
        return torch.tensor(network.read(image, value)).reshape(h, w, c).permute(2, 0, 1)


def checked(images: Tensor, packed: PackedModel) -> Tensor:
    """The images as contiguous fp32 on the CPU; ValueError for another shape than the network's input."""
    expected = packed.input_shape
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(expected):
        raise ValueError(f"images of shape {list(images.shape)}, expected [N, {', '.join(map(str, expected))}]")
    return images.detach().to("cpu", torch.float32).contiguous()


@cache
def native() -> ModuleType | None:
    """The compiled engine, or None where it was not built; that is said once."""
    try:
        from sparsign.kernels import _native
    except ImportError as error:
        warnings.warn(f"the compiled engine is not there ({error}): packed networks run in torch", stacklevel=3)
        return None
    return _native


def _native_or_raise() -> ModuleType:
    module = native()
    if module is None:
        raise CannotRun("the compiled engine was not built: expected a C++ compiler while installing")
    return module


def load_engine(packed: PackedModel, isa: str | None = None, threads: int | None = None) -> Engine:
    """The fastest engine this machine can run the network with.

    Args:
        packed: a network with a graph.
        isa: avx512, avx2 or generic; `reference` for plain torch; None for $SPARSIGN_ISA, or else the best there is.
        threads: over which the images of a batch are split; None for torch's number of threads.

    Returns:
        The compiled engine; the reference engine where it was not built or the network holds something it has no step
        for, with a warning that says why.

    Raises:
        ValueError: the model does not hang together, or the instruction set named is not one of this machine's.
    """
    isa = os.environ.get(ISA_VARIABLE, "") if isa is None else isa
    if isa == REFERENCE or (native() is None and not isa):
        return ReferenceEngine(packed)
    try:
        return NativeEngine(packed, isa, threads)
    except CannotRun as error:
        if isa:
            raise
        warnings.warn(f"{error}: it runs in torch", stacklevel=2)
        return ReferenceEngine(packed)
