"""Bytes and speed of the entropy coders beside general compressors, on the codes of whole networks.

    python benchmarks/packing.py [--checkpoints FOLDER] [FILE.sparsign ...]

Rows: ternary ResNets made from the float .th checkpoints in FOLDER (a threshold of 0.05 max|w| a layer, or the given
part of every filter zeroed by magnitude), independent ternary and binary arrays of ResNet-18's shapes, and the codes
of packed models, of float layers their positions and signs. Columns in bytes: `order-0 H` is the entropy of each
layer's codes by its own frequencies, which no coder without contexts beats; gzip, xz and zstd take ceil(log2 levels)
bits a code; `deflate` takes five trits a byte, layer by layer; `fields` and `mixing` are the coders of packing/coding.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from sparsign.packing.codecs import bits_per_symbol, deflate, pack
from sparsign.packing.coding import coders, decode_codes, encode_codes, encode_fields, split_irregular
from sparsign.packing.file import read

try:
    import zstandard
except ImportError:
    zstandard = None

Network = list[np.ndarray]
RESNET18 = [(64, 64)] * 4 + [(128, 64)] + [(128, 128)] * 3 + [(256, 128)] + [(256, 256)] * 3 + [(512, 256)]
RESNET18 = [(*pair, 3, 3) for pair in RESNET18 + [(512, 512)] * 3]
COLUMNS = ("weights", "zeros", "order-0 H", "2-bit gzip", "xz", "zstd", "deflate", "fields", "mixing", "best/H")


def thresholded(weights: Network) -> Network:
    """Ternary codes: the sign where a weight's magnitude exceeds 0.05 of its layer's largest."""
    return [np.sign(w) * (abs(w) > 0.05 * abs(w).max()) for w in weights]


def sparse(weights: Network, zeros: float) -> Network:
    """Ternary codes: the part `zeros` of every filter, its smallest weights, is zero."""
    networks = []
    for w in weights:
        sizes = abs(w).reshape(len(w), -1)
        count = round(zeros * sizes.shape[1])
        largest = np.sort(sizes, axis=1)[:, count - 1 : count]
        networks.append(np.sign(w) * (sizes > largest).reshape(w.shape))
    return networks


def float_checkpoints(folder: Path) -> Iterator[tuple[str, Network]]:
    """The networks made from each .th file."""
    for path in sorted(folder.glob("*.th")):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        weights = [tensor.numpy() for tensor in state.values() if tensor.ndim in (2, 4)]
        name = path.stem.split("-")[0]
        yield f"{name} threshold", thresholded(weights)
        for zeros in (0.5, 0.8, 0.9):
            yield f"{name} {zeros:.0%} zeros", sparse(weights, zeros)


def independent() -> Iterator[tuple[str, Network]]:
    """Arrays without structure: nothing beats their entropy."""
    generator = np.random.default_rng(0)
    for zeros in (0.8, 0.9):
        odds = [(1 - zeros) / 2, zeros, (1 - zeros) / 2]
        yield f"i.i.d. resnet18 {zeros:.0%} zeros", [generator.choice([-1, 0, 1], shape, p=odds) for shape in RESNET18]
    yield "i.i.d. resnet18 binary", [generator.choice([-1, 1], shape) for shape in RESNET18]


def packed_codes(path: Path) -> Network:
    """The codes of a packed model, of its float layers the signs."""
    layers = [node.codes for node in read(path).layers().values()]
    return [layer.dense_codes() if layer.coded else split_irregular(layer.weight())[0] for layer in layers]


def symbols(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes as 0 .. levels - 1, and the levels."""
    levels, indices = np.unique(codes, return_inverse=True)
    return indices.ravel().astype(np.uint16), len(levels)


def entropy(codes: np.ndarray) -> float:
    """Order-0 entropy in bytes."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def seconds(call: Callable[[], object]) -> float:
    """CPU time of the quickest of three calls."""
    times = []
    for _ in range(3):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def plain_bits(network: Network) -> bytes:
    """Every layer's codes, ceil(log2 levels) bits each."""
    parts = []
    for codes in network:
        numbers, levels = symbols(codes)
        width = bits_per_symbol(levels)
        parts.append((numbers[:, None] >> np.arange(width) & 1).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(parts)).tobytes()


def measure(network: Network) -> list[str]:
    """A row of the table behind its name."""
    network = [codes.astype(np.int16) for codes in network]
    shapes = [codes.shape for codes in network]
    count = sum(codes.size for codes in network)
    zeros = sum(codes.size - np.count_nonzero(codes) for codes in network) / count
    bound, plain = sum(map(entropy, network)), plain_bits(network)
    mixed = encode_codes(network)
    if not all(map(np.array_equal, decode_codes(mixed, shapes), network)):
        raise RuntimeError("the decoded codes differ")
    coded = [symbols(codes) for codes in network]
    fields = sum(len(encode_fields(numbers, [bits_per_symbol(levels)])) for numbers, levels in coded)
    packed = [pack(numbers, levels) for numbers, levels in coded]
    sizes = [
        len(gzip.compress(plain, 9)),
        len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        len(zstandard.compress(plain, 19)) if zstandard else None,
        sum(min(len(data), len(deflate(data))) for data in packed),
        fields,
        len(mixed),
    ]
    speeds = [seconds(lambda: encode_codes(network)), seconds(lambda: decode_codes(mixed, shapes))]
    return [
        f"{count:,}",
        f"{zeros:.1%}",
        f"{bound:,.0f}",
        *("-" if size is None else f"{size:,}" for size in sizes),
        f"{min(fields, len(mixed), sum(map(len, packed))) / bound:.4f}",
        *(f"{count / spent / 1e6:.1f}" for spent in speeds),
    ]


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="packed models")
    parser.add_argument("--checkpoints", type=Path, help="folder of float ResNets (.th)")
    options = parser.parse_args()
    if coders._coder is None:
        print("The compiled coder is not built: this takes an hour.\n")
    print("|".join(["", "network", *COLUMNS, "encode M/s", "decode M/s", ""]))
    print("|---" * (len(COLUMNS) + 3) + "|")
    networks = list(float_checkpoints(options.checkpoints)) if options.checkpoints else []
    files = [(str(path.parent.name), packed_codes(path)) for path in options.files]
    for name, network in (*networks, *independent(), *files):
        print("|".join(["", name, *measure(network), ""]), flush=True)


if __name__ == "__main__":
    main()
