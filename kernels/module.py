"""A packed file as an `nn.Module`: `sparsign.load`. The compiled engine is behind one registered torch operation."""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor, nn

from sparsign.kernels.engine import ISA_VARIABLE, REFERENCE, NativeEngine, native
from sparsign.kernels.lower import CannotRun
from sparsign.kernels.reference import node_tensors
from sparsign.packing.file import loads, read
from sparsign.packing.limits import DEFAULT, Limits
from sparsign.packing.spec import OPS, PackedModel

ENGINES = ("auto", "native", "reference")
MOST_PREPARED = 256
"""Networks that are kept ready to run; the one that was used longest ago is prepared anew when it is called again. What
`sparsign.load` prepared goes with its module."""
_prepared: OrderedDict[tuple[int, int, int, str, int], tuple[NativeEngine, Tensor]] = OrderedDict()
_lock = RLock()  # the garbage collector may forget a module while its thread holds it


def _new_lock() -> None:
    global _lock
    _lock = RLock()


os.register_at_fork(after_in_child=_new_lock)  # another thread of the parent may have held it


@torch.library.custom_op("sparsign::run_packed", mutates_args=(), device_types="cpu")
def run_packed(images: Tensor, file: Tensor, classes: int, isa: str, threads: int) -> Tensor:
    """Logits [N, classes] of normalised fp32 images [N, C, H, W], by the compiled engine.

    Args:
        file: uint8, the bytes of a packed file: the operation needs nothing else, so that an exported program runs in
            another process that has imported this module.
        isa: instruction set, empty for the best there is. threads: 0 for torch's number.
    """
    return _engine(file, isa, threads)(images)


@run_packed.register_fake
def _(images: Tensor, file: Tensor, classes: int, isa: str, threads: int) -> Tensor:
    return images.new_empty(images.shape[0], classes, dtype=torch.float32)


def _engine(file: Tensor, isa: str, threads: int, packed: PackedModel | None = None) -> NativeEngine:
    """The engine of a file's bytes. The tensor is kept with it: no other one can get its address in the meantime."""
    version = 0 if file.is_inference() else file._version  # other bytes may be copied into it: load_state_dict
    key = (file.data_ptr(), version, file.numel(), isa, threads)
    with _lock:
        engine, of = _prepared.get(key, (None, file))
        if engine is not None and of.data_ptr() == file.data_ptr():  # share_memory() moves a tensor and frees its place
            _prepared.move_to_end(key)
            return engine
    packed = loads(file.numpy().tobytes()) if packed is None else packed
    engine = NativeEngine(packed, isa, threads or None)  # outside the lock: other networks run meanwhile
    with _lock:
        _prepared[key] = engine, file
        while len(_prepared) > MOST_PREPARED:
            _prepared.popitem(last=False)
    return engine


def _forget(address: int) -> None:
    with _lock:
        for key in list(_prepared):
            if key[0] == address:
                _prepared.pop(key, None)


class PackedNetwork(nn.Module):
    """Runs a packed network: normalised fp32 images [N, C, H, W] -> fp32 logits [N, classes].

    `engine` says what runs: `reference`, torch operations on any device, bit-equal to the trained network in eval mode
    on the CPU where it was trained; or `native`, the compiled engine, on the CPU. A network made with `auto` has both:
    the compiled engine for images on the CPU, torch for those elsewhere.
    """

    def __init__(self, packed: PackedModel, file: bytes, engine: str, isa: str = "", threads: int = 0) -> None:
        super().__init__()
        self.engine, self.isa, self.threads = engine, isa, threads
        self.classes, self.input_shape, self.meta = packed.shapes[packed.output][0], packed.input_shape, packed.meta
        self._packed = packed
        if engine != "reference":
            self.register_buffer("file", torch.frombuffer(bytearray(file), dtype=torch.uint8))
            _engine(self.file, isa, threads, packed)
            weakref.finalize(self, _forget, self.file.data_ptr())
        if engine != "native":
            for k, node in enumerate(packed.nodes):
                for name, tensor in node_tensors(node).items():
                    self.register_buffer(f"{name}_{k}", tensor)

    def forward(self, images: Tensor) -> Tensor:
        """ValueError for images of another shape, or on another device than the compiled engine's."""
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(self.input_shape):
            shape = ", ".join(map(str, self.input_shape))
            raise ValueError(f"images of shape {list(images.shape)}, expected [N, {shape}]")
        if self.engine == "native" and images.device.type != "cpu":
            raise ValueError(f"images on {images.device}: engine=native runs on the CPU, expected engine=auto")
        if self.engine != "reference" and images.device.type == "cpu":
            return torch.ops.sparsign.run_packed(images, self.file, self.classes, self.isa, self.threads)
        kind = images.device.type
        if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):  # the logits are fp32 whatever is around
            with torch.autocast(kind, enabled=False):
                return self._reference(images)
        return self._reference(images)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedNetwork:
        """Moves, but stays fp32, as the compiled engine does, where a network around it becomes `half()`."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    def _reference(self, images: Tensor) -> Tensor:
        values = {}
        for k, node in enumerate(self._packed.nodes):
            names = [*node.tensors, *(["weight"] if node.codes is not None else [])]
            tensors = {name: getattr(self, f"{name}_{k}") for name in names}
            inputs = [values[name] for name in node.inputs]
            values[node.name] = OPS[node.op].run(node, tensors, *inputs) if inputs else images.float()
        return values[self._packed.output]

    def extra_repr(self) -> str:
        """Engine, input and what is in the file."""
        weights = sum(math.prod(n.codes.layout.stored_shape()) for n in self._packed.layers().values())
        return f"engine={self.engine}, input={list(self.input_shape)}, classes={self.classes}, weights={weights}"


def load(
    file: str | Path, engine: str = "auto", isa: str = "", threads: int = 0, limits: Limits = DEFAULT
) -> PackedNetwork:
    """A packed file as a module in eval mode; see `sparsign.load`."""
    if engine not in ENGINES:
        raise ValueError(f"engine={engine}, expected one of {', '.join(ENGINES)}")
    if threads < 0:
        raise ValueError(f"threads={threads}, expected at least 1, or 0 for torch's number")
    isa = isa or os.environ.get(ISA_VARIABLE, "")
    if isa == REFERENCE and engine == "native":
        raise ValueError(f"engine=native, but isa or {ISA_VARIABLE} is {REFERENCE}: expected an instruction set")
    packed, content = read(file, limits), Path(file).read_bytes()
    if engine == "reference" or isa == REFERENCE or (engine == "auto" and native() is None):
        engine, isa = "reference", ""
    try:
        return PackedNetwork(packed, content, engine, isa, threads).eval()
    except CannotRun as error:
        if engine == "native":
            raise
        warnings.warn(f"{error}: it runs in torch", stacklevel=3)
        return PackedNetwork(packed, content, "reference").eval()
