"""How large a packed model is, in every way the papers count it. Each number says of what it is."""

from __future__ import annotations

import gzip
import lzma
import math
from dataclasses import dataclass, fields

import numpy as np

from sparsign.packing.codecs import bits_per_symbol, pack
from sparsign.packing.encode import FLOAT_BITS, entropy_bits
from sparsign.packing.layouts import index_entropy
from sparsign.packing.spec import OPS, LayerCodes, Node, PackedModel


@dataclass(frozen=True)
class Size:
    """Sizes of a layer or of a whole network; they add.

    Attributes:
        parameters: kept numbers: weights that the layers' layouts store, scales not counted; biases; BN's scale and
            shift.
        nonzeros: those of them that are not zero.
        theoretical_bits: stored weights at ceil(log2(levels)) bits, 32 for every scale and float, one bit for every
            piece (kernel, group, weight) that a layout stores or not; no entropy coding, no headers.
        entropy_bits: the codes at their empirical entropy, 32 for every scale and float, and the structure (what the
            layouts store, kept rows, columns, channel indices) at its empirical entropy.
        original_parameters: numbers of the uncut network.
    """

    parameters: int = 0
    nonzeros: int = 0
    theoretical_bits: int = 0
    entropy_bits: float = 0.0
    original_parameters: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Size)))

    @property
    def float_bytes(self) -> int:
        """Bytes of the uncut network in fp32: 4 per parameter."""
        return self.original_parameters * FLOAT_BITS // 8

    @property
    def entropy_bound_bytes(self) -> int:
        return math.ceil(self.entropy_bits / 8)


def _index_bits(kept: int, of: int) -> float:
    """Entropy of saying which `kept` of `of` places are taken."""
    return entropy_bits(np.arange(of) < kept)


def node_size(node: Node, input_channels: int) -> Size:
    """Size of one node; `original_parameters` only of its weight and bias, for BN of the kept channels."""
    floats = [t for name, t in node.tensors.items() if t.dtype == np.float32 and not _goes_without_saying(name, t)]
    count = sum(t.size for t in floats)
    size = Size(count, sum(int(np.count_nonzero(t)) for t in floats), FLOAT_BITS * count, FLOAT_BITS * count, count)
    for name, index in node.tensors.items():
        if index.dtype == np.int64:
            of = node.attrs["channels"] if node.op == "add" else input_channels
            bits = _index_bits(len(index), of) if name in OPS[node.op].indices else math.lgamma(of + 1) / math.log(2)
            size += Size(theoretical_bits=math.ceil(bits), entropy_bits=bits)
    if node.codes is None:
        return size
    full_bias = node.codes.full_shape[0] - len(node.codes.rows) if "bias" in node.tensors else 0
    return size + _weight_size(node.codes) + Size(original_parameters=full_bias)


def _goes_without_saying(name: str, tensor: np.ndarray) -> bool:
    """The scale of a learned shift, which is packed as an affine map: ones, which no network holds."""
    return name == "scale" and bool((tensor == 1).all())


def _weight_size(layer: LayerCodes) -> Size:
    original = math.prod(layer.full_shape)
    structure = sum(_index_bits(len(k), n) for k, n in zip((layer.rows, layer.cols), layer.full_shape, strict=False))
    codes, scales = layer.codes, FLOAT_BITS * layer.values.count()
    width, entropy = FLOAT_BITS, float(FLOAT_BITS * codes.size)
    if layer.coded:
        width, entropy = bits_per_symbol(len(np.unique(codes))), entropy_bits(codes)
    theoretical = width * codes.size + layer.layout.index_bits()
    entropy += index_entropy(layer.layout.mask)
    nonzeros = int(np.count_nonzero(codes))
    return Size(codes.size, nonzeros, theoretical + scales, entropy + scales + structure, original)


def sizes(packed: PackedModel) -> dict[str, Size]:
    """Size of every node that holds numbers, by name."""
    shapes = packed.shapes
    holders = [node for node in packed.nodes if node.tensors or node.codes is not None]
    return {n.name: node_size(n, shapes[n.inputs[0]][0]) for n in holders}


def total_size(packed: PackedModel, conv_only: bool = False) -> Size:
    """Size of the whole network, or of its conv layers' weights and biases only, as some papers count."""
    found = sizes(packed)
    dropped = packed.meta.get("original", {}).get("dropped", [])
    if conv_only:
        total = sum((found[n.name] for n in packed.nodes if n.is_conv), Size())
        return total + Size(original_parameters=sum(math.prod(full) for _, full, _ in dropped if len(full) == 4))
    total = sum(found.values(), Size())
    known = packed.meta.get("original", {}).get("parameters", total.original_parameters)
    return total + Size(original_parameters=known - total.original_parameters)


def compressed_code_bytes(packed: PackedModel) -> dict[str, int]:
    """Bytes of all codes at two bits (more for more than four levels) after `gzip -9` and after `xz -9e`.

    PTQ's accounting (our choice: the paper gives totals only), without scales and float parts.
    """
    parts = []
    for node in packed.layers().values():
        if node.codes.coded:
            codes = node.codes.dense_codes().ravel()
            levels = np.unique(codes)
            parts.append(pack(np.searchsorted(levels, codes).astype(np.uint16), max(4, len(levels))))
    data = b"".join(parts)
    return {
        "packed": len(data),
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
