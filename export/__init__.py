"""A packed file as others' tools read it: ONNX, torch.export, safetensors, a C header. `python -m sparsign.export`."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass

from sparsign.packing.spec import PackedModel


@dataclass(frozen=True)
class Format:
    """Module of `content(packed, options) -> Content` that makes a file of this format, and how its name ends."""

    module: str
    suffix: str
    help: str


@dataclass(frozen=True)
class Options:
    """weights: of ONNX, a key of `export.weights.WEIGHTS`. check: whether to load and compare what was made."""

    weights: str = "float"
    check: bool = True


DEFAULT = Options()


def facts(packed: PackedModel) -> dict[str, str]:
    """What the packed file says about its network and data (classes, mean, std), as JSON by part."""
    return {part: json.dumps(packed.meta[part]) for part in ("model", "dataset") if part in packed.meta}


@dataclass(frozen=True)
class Content:
    """Bytes of a file, and what is worth saying about them in half a line."""

    data: bytes
    note: str


FORMATS = {
    "onnx": Format("onnx_file", ".onnx", "standard operations only, any batch; compared with onnxruntime"),
    "torch": Format("torch_file", ".pt2", "a torch.export program of aten operations, any batch"),
    "safetensors": Format("safetensors_file", ".safetensors", "decoded weights under the network's names"),
    "c-header": Format("c_header", ".h", "a table of packed bits and scales for microcontrollers"),
}


def convert(packed: PackedModel, to: str, options: Options = DEFAULT) -> Content:
    """The packed network in a format of `FORMATS`; what is needed to load it knows nothing of ours.

    Raises:
        ValueError: an unknown format or an option outside its range; something in the network that the format has no
            spelling for; what was made does not answer as the packed network.
        ImportError: a package that the format needs is missing.
    """
    if to not in FORMATS:
        raise ValueError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if options.weights != "float" and to != "onnx":
        raise ValueError(f"--weights {options.weights}: only --to onnx has a choice")
    return importlib.import_module(f"sparsign.export.{FORMATS[to].module}").content(packed, options)
