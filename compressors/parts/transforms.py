"""What a layer's weight goes through in the forward pass, as `torch.nn.utils.parametrize` parametrizations.

A method is a short list of transforms. Their masks, duals and thresholds are buffers and whether they act at all is
extra state, so that a plain `state_dict` carries a compression run and nothing else has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Scale = Tensor | tuple[Tensor, Tensor]
"""fp32 scale of a layer's codes: 0-dim or one per filter ([out, 1, 1, 1]); a pair where the two signs differ (TTQ)."""


class WeightTransform(nn.Module):
    """A map from weight to weight, applied while `active`. Subclasses write `transform`."""

    def __init__(self, active: bool = True) -> None:
        super().__init__()
        self.active = active

    def forward(self, weight: Tensor) -> Tensor:
        return self.transform(weight) if self.active else weight

    def transform(self, weight: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define transform(weight)")

    def get_extra_state(self) -> dict:
        return {"active": self.active}

    def set_extra_state(self, state: dict) -> None:
        self.active = bool(state["active"])


class Mask(WeightTransform):
    """weight * mask, mask in {0, 1}; gradients of masked weights are zero by the same product.

    Args:
        shape: any shape that broadcasts to the weight, e.g. [out, 1, 1, 1] for whole filters.
    """

    def __init__(self, shape: tuple[int, ...], active: bool = True) -> None:
        super().__init__(active)
        self.register_buffer("mask", torch.ones(shape))

    def transform(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class WeightMask(Mask):
    """A mask of the weight's own shape: which single weights are left."""


class ChannelMask(Mask):
    """A mask [out, in, 1, 1] (or [out, in]; [C] on BN) of whole filters and of whole input channels."""


class UnitNorm(WeightTransform):
    """w_f / (||w_f||_2 + eps) for every filter (row of the im2col matrix)."""

    def __init__(self, eps: float = 1e-8, active: bool = True) -> None:
        super().__init__(active)
        self.eps = eps

    def transform(self, weight: Tensor) -> Tensor:
        norm = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
        return weight / (norm + self.eps)


def scaled(codes: Tensor, scale: Scale) -> Tensor:
    """`scale * codes`, the one rule that turns integer codes into weights."""
    codes = codes.to(torch.float32)
    if isinstance(scale, tuple):
        positive, negative = scale
        return torch.where(codes > 0, positive * codes, negative * codes)
    return scale * codes


class Quantizer(WeightTransform):
    """Values are `scale * codes`. Subclasses write `encode`, and its pseudo-gradient in `transform`."""

    def encode(self, weight: Tensor) -> tuple[Tensor, Scale]:
        """Integer codes of the weight's shape (float tensor holding integers) and their fp32 scale."""
        raise TypeError(f"{type(self).__name__} does not define encode(weight)")


T = TypeVar("T", bound=WeightTransform)


def attach(layer: nn.Module, *transforms: WeightTransform, tensor: str = "weight") -> None:
    """Registers the transforms on `layer.weight` (or another tensor of the layer), in this order."""
    for transform in transforms:
        parametrize.register_parametrization(layer, tensor, transform)


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """All conv and linear layers by name, in model order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def latent(layer: nn.Module) -> nn.Parameter:
    """The full-precision weight that the optimizer updates."""
    return layer.parametrizations.weight.original if parametrize.is_parametrized(layer, "weight") else layer.weight


def transforms(layer: nn.Module, tensor: str = "weight") -> list[WeightTransform]:
    """The transforms of `layer.weight` (or another tensor of the layer), in order."""
    return list(layer.parametrizations[tensor]) if parametrize.is_parametrized(layer, tensor) else []


def find(layer: nn.Module, kind: type[T], tensor: str = "weight") -> T:
    """The one transform of this kind on the layer; KeyError when it has none or several."""
    found = {id(t): t for t in transforms(layer, tensor) if isinstance(t, kind)}
    if len(found) != 1:
        raise KeyError(f"{len(found) or 'no'} {kind.__name__} on {type(layer).__name__}, expected one")
    return next(iter(found.values()))


def found(model: nn.Module, kind: type[T]) -> list[tuple[nn.Module, T]]:
    """(layer, transform) of every weight that has a transform of this kind, in model order."""
    return [(layer, t) for _, layer in transformed(model) for t in transforms(layer) if isinstance(t, kind)]


def transformed(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every layer whose weight has transforms, in model order."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            yield name, module


@torch.no_grad()
def encode_layer(layer: nn.Module) -> tuple[Tensor, Scale] | None:
    """(codes int16, scale) with `scaled(codes, scale) == layer.weight` exactly, or None for a float layer."""
    codes, scale, weight = None, None, latent(layer)
    for transform in transforms(layer):
        if not transform.active:
            continue
        if isinstance(transform, Quantizer):
            codes, scale = transform.encode(weight)
        elif isinstance(transform, Mask) and codes is not None:
            codes = codes * transform.mask
        elif codes is not None:
            raise ValueError(f"{type(transform).__name__} after a quantizer: its codes would be lost")
        weight = transform(weight)
    if codes is None:
        return None
    return codes.to(torch.int16), scale
