"""From a trained network to its packed file, and the same tried out before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import fields

from omegaconf import DictConfig
from torch import nn

from sparsign.compressors.base import Compressor, matching
from sparsign.compressors.parts.transforms import encode_layer
from sparsign.configs.members import shipped
from sparsign.configs.options import near_match
from sparsign.packing.spec import PackedModel
from sparsign.packing.trace import to_packed


def packed_model(config: DictConfig, model: nn.Module, meta: dict | None = None) -> PackedModel:
    """The network, cut and in codes. Raises ValueError for one that no packed file can hold."""
    m = config.model
    return to_packed(model, encode_layer, (m.in_channels, m.image_size, m.image_size), meta)


def check_packable(config: DictConfig, model: nn.Module) -> None:
    """A dry cut and pack of the prepared network. Raises ValueError naming the model and the layer in its way."""
    try:
        packed_model(config, copy.deepcopy(model).eval())
    except ValueError as error:
        raise ValueError(f"model={config.model.name} cannot be packed: {error}") from error


def check_layer_patterns(compressor: Compressor, model: nn.Module) -> None:
    """Raises ValueError for a pattern of `float_layers` in which no layer is found, unless it is the method's own."""
    own = next(f for f in fields(compressor) if f.name == "float_layers").default_factory()
    own += shipped("compressor", compressor.name).get("float_layers", [])
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for pattern in compressor.float_layers:
        if pattern not in ("first", "last", *own) and not matching([pattern], names, "compressor.float_layers"):
            hint = near_match(pattern, names) or f"; the layers: {', '.join(names[:8])}{', ...' if names[8:] else ''}"
            raise ValueError(f"compressor.float_layers={pattern}: no layer's name has it{hint}")
