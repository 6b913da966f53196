"""A network whose forward cannot be traced: its layers are packed without a graph and restored into a fresh network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsign.packing.encode import Encode, layer_codes
from sparsign.packing.spec import LayerCodes, Node, PackedModel


def pack_layers(model: nn.Module, encode: Encode, meta: dict[str, Any] | None = None) -> PackedModel:
    """Pack every module of a trained network that has tensors of its own as a node `layer`; nothing is cut.

    The weight of a conv or linear layer travels as codes or floats, as `encode` says (see `to_packed`), every other
    floating-point tensor of the plain network's state dict (biases, BN and its statistics) in fp32. Integers do not:
    BN's count of batches has no say in eval mode.

    Raises:
        ValueError: a layer whose weight is not exactly scale * codes, or a tensor with NaN or infinity.
    """
    nodes = []
    for name, module, tensors in _modules(model):
        codes = None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rows, cols = (np.arange(n) for n in tensors.pop("weight").shape[:2])
            codes = layer_codes(name, module, encode(module), rows, cols, getattr(module, "groups", 1))
        arrays = {key: tensor.detach().float().cpu().numpy() for key, tensor in tensors.items()}
        nodes.append(Node("layer", name, tensors=arrays, codes=codes))
    packed = PackedModel(nodes, (), None, meta or {})
    packed.validate()
    return packed


@torch.no_grad()
def restore_layers(packed: PackedModel, model: nn.Module) -> None:
    """Fill a freshly built network of the packed one's architecture in place; its eval-mode outputs are then the same.

    Raises:
        ValueError: a packed model with a graph, a network with weight transforms, a tensor that one of the two lacks or
            that has another shape. The network is then as it was.
    """
    packed.validate()
    if packed.has_graph:
        raise ValueError("the packed model has a graph: expected layers without one")
    found: dict[str, np.ndarray | LayerCodes] = {}
    for node in packed.nodes:
        own = node.tensors if node.codes is None else {"weight": node.codes, **node.tensors}
        found.update({_join(node.name, key): value for key, value in own.items()})
    wanted: dict[str, Tensor] = {}
    for name, module, tensors in _modules(model):
        if parametrize.is_parametrized(module):
            raise ValueError(f"layer {name} has weight transforms: expected a freshly built network")
        wanted.update({_join(name, key): tensor for key, tensor in tensors.items()})
    _compare(found, wanted, type(model).__name__)
    for name, tensor in wanted.items():
        value = found[name]
        tensor.copy_(torch.from_numpy(_uncut(value) if isinstance(value, LayerCodes) else value))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """(name, module, its own floats as in the plain network's state dict), weight transforms applied."""
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        tensors = {key: value for key, value in module.state_dict().items() if "." not in key}
        if parametrize.is_parametrized(module):
            tensors |= {key: getattr(module, key) for key in module.parametrizations}
        floats = {k: t for k, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
        if floats:
            yield name, module, floats


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _compare(found: dict[str, np.ndarray | LayerCodes], wanted: dict[str, Tensor], network: str) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise ValueError(f"the packed model lacks {len(missing)} tensors of {network}, such as {missing[0]}")
    if extra:
        raise ValueError(f"the packed model has {len(extra)} tensors that {network} lacks, such as {extra[0]}")
    for name, tensor in wanted.items():
        value = found[name]
        shape = tuple(value.full_shape if isinstance(value, LayerCodes) else value.shape)
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name} has shape {list(shape)} in the packed model, expected {list(tensor.shape)}")


def _uncut(layer: LayerCodes) -> np.ndarray:
    """fp32 weight of the full shape, zero in removed rows and columns."""
    full = np.zeros(layer.full_shape, np.float32)
    full[np.ix_(layer.rows, layer.cols)] = layer.weight()
    return full
