"""Chains of conv layers without shortcuts, float or with binary activations: what NIN and VGG are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sparsign.models.sign import Sign, SignGradient

Order = Literal["conv_first", "norm_first"]
ORDERS: tuple[Order, ...] = ("conv_first", "norm_first")
LAB_EPS = 1e-4


@dataclass(frozen=True)
class ConvLayer:
    """One layer of a chain: filters, odd kernel with "same" padding, dropout on what it reads, pool behind it."""

    filters: int
    kernel: int = 3
    dropout: float = 0.0
    pool: Callable[[], nn.Module] | None = None


def float_chain(layers: Sequence[ConvLayer], inputs: int) -> nn.Sequential:
    """[dropout ->] conv -> BN -> ReLU [-> pool], for every layer."""
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [*_dropout(layer), _conv(layer, inputs), nn.BatchNorm2d(layer.filters), nn.ReLU(True), *_pool(layer)]
        inputs = layer.filters
    return nn.Sequential(*parts)


def binary_chain(layers: Sequence[ConvLayer], inputs: int, gradient: SignGradient, order: Order) -> nn.Sequential:
    """The same chain with binary activations between its convs; the first reads the image, the classifier real values.

    conv_first  [dropout ->] conv [-> pool] -> BN -> Sign, behind the last conv ReLU instead of Sign. BN follows its
                conv, so its scale belongs to the filter that STQ-A prunes by it (our choice).
    norm_first  stem conv -> BN -> ReLU [-> pool], then BN -> Sign [-> dropout] -> conv -> ReLU [-> pool], then BN
                (XNOR-Net's and the subsidiary paper's code, with which STQ-Nets compare). There the BNs around the
                stem and before the classifier have no scale and shift; here they do, so that every binary filter has
                a scale to be judged by (our choice).

    Pools read real values in both: pooling +1 / -1 maps loses information (XNOR-Net: paper).
    """
    parts: list[nn.Module] = []
    for index, layer in enumerate(layers):
        conv, pool = _conv(layer, inputs), _pool(layer)
        if order == "conv_first":
            last = index == len(layers) - 1
            activation: nn.Module = nn.ReLU(True) if last else Sign(gradient)
            parts += [*_dropout(layer), conv, *pool, nn.BatchNorm2d(layer.filters), activation]
        elif index == 0:
            parts += [*_dropout(layer), conv, _lab_norm(layer.filters), nn.ReLU(True), *pool]
        else:
            parts += [_lab_norm(inputs), Sign(gradient), *_dropout(layer), conv, nn.ReLU(True), *pool]
        inputs = layer.filters
    return nn.Sequential(*parts, *([_lab_norm(inputs)] if order == "norm_first" else []))


def _conv(layer: ConvLayer, inputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, layer.filters, layer.kernel, padding=layer.kernel // 2, bias=False)


def _dropout(layer: ConvLayer) -> list[nn.Module]:
    return [nn.Dropout(layer.dropout)] if layer.dropout else []


def _pool(layer: ConvLayer) -> list[nn.Module]:
    return [layer.pool()] if layer.pool else []


def _lab_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=LAB_EPS)
