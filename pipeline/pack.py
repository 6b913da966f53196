"""From a trained network to its packed file, and the same tried out before anything is trained."""

from __future__ import annotations

import copy

from omegaconf import DictConfig
from torch import nn

from sparsign.compressors.parts.transforms import encode_layer
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
