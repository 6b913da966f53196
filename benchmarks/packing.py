"""How small packed files are, and what writing and reading them costs.

    python benchmarks/packing.py [--checkpoints FOLDER] [FILE.sparsign ...]

Files: bytes of whole files beside a bound, and their codes under general compressors. `order-0 H` is the entropy of
codes and structure by their own frequencies, layer by layer, which no coder without contexts beats; `floats` all
leftovers at the precision they have, uncompressed; `ratio` is the file by (order-0 H + floats + 300 B). Goals: at most
0.97 for trained networks, 1.005 for independent codes, of which synthetic ResNet-18s are made here.

Codes: ternary ResNets made from the float .th checkpoints in FOLDER (a threshold of 0.05 max|w| a layer, or the given
part of every filter zeroed by magnitude) and the synthetic ones. gzip, xz and zstd take ceil(log2 levels) bits a code;
`deflate` takes five trits a byte, layer by layer; `fields` and `mixing` are the coders of packing/coding. `nncodec` is
the reference coder of ISO/IEC 15938-17 on the same integers, decoded again and compared. It wants an environment of its
own (`pip install nncodec pandas timm`), in which this file then runs.

Costs: CPU seconds of writing ResNet-18, CPU milliseconds from open to a ready reference engine in a process that has
imported everything, decoded weights per second, and peak memory of opening it less what the imports take.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparsign.kernels.reference import ReferenceEngine
from sparsign.models.resnet import resnet18
from sparsign.packing.codecs import bits_per_symbol, deflate, pack
from sparsign.packing.coding import coders, decode_codes, encode_codes, encode_fields
from sparsign.packing.file import dumps, loads, read, write
from sparsign.packing.floats import PRECISIONS, precision
from sparsign.packing.size import total_size
from sparsign.packing.spec import PackedModel
from sparsign.packing.trace import to_packed

try:
    import zstandard
except ImportError:
    zstandard = None
try:
    from nncodec import nnc
except ImportError:
    nnc = None

Network = list[np.ndarray]
FILES = (
    "weights",
    "zeros",
    "order-0 H",
    "floats",
    "2-bit gzip",
    "xz",
    "zstd",
    "nncodec",
    "ours",
    "header",
    "file",
    "ratio",
)
COLUMNS = ("weights", "zeros", "order-0 H", "2-bit gzip", "xz", "zstd", "nncodec", "deflate", "fields", "mixing")
COLUMNS += ("best/H", "encode M/s", "decode M/s")


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


def independent() -> Iterator[tuple[str, PackedModel]]:
    """ResNet-18s whose codes have no structure: nothing beats their entropy."""
    for name, odds in {"80% zeros": [0.1, 0.8, 0.1], "90% zeros": [0.05, 0.9, 0.05], "binary": [0.5, 0, 0.5]}.items():
        yield f"i.i.d. resnet18 {name}", synthetic(odds)


def synthetic(odds: list[float]) -> PackedModel:
    """ResNet-18 with codes -1, 0, 1 of these odds and one scale in every conv but the first."""
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    net, scale, codes = resnet18(10, 3, 32, "float").eval(), torch.tensor(0.02), {}
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            drawn = torch.from_numpy(generator.choice([-1, 0, 1], tuple(module.weight.shape), p=odds))
            codes[module] = drawn
            module.weight.data = scale * drawn.float()
    return to_packed(net, lambda module: (codes[module], scale) if module in codes else None, (3, 32, 32))


def packed_codes(packed: PackedModel) -> Network:
    """The codes of a packed model, of its pruned float layers the signs."""
    layers = [node.codes for node in packed.layers().values()]
    pruned = [layer for layer in layers if not layer.coded and layer.layout.mask is not None]
    coded = [layer.dense_codes() for layer in layers if layer.coded]
    return coded + [np.sign(layer.weight()) for layer in pruned]


def floats(packed: PackedModel) -> list[np.ndarray]:
    """All fp32 arrays that the file holds."""
    arrays = [t for node in packed.nodes for t in node.tensors.values() if t.dtype == np.float32]
    for layer in (node.codes for node in packed.layers().values()):
        arrays += [*layer.values.arrays().values(), *([] if layer.coded else [layer.codes])]
    return arrays


def file_row(packed: PackedModel) -> list[str]:
    """A row of the table of files behind its name."""
    data, arrays = dumps(packed), floats(packed)
    leftovers = sum(PRECISIONS[precision(array)] * array.size for array in arrays)
    bound = total_size(packed).entropy_bits / 8 - 4 * sum(array.size for array in arrays)
    codes = [layer.astype(np.int16) for layer in packed_codes(packed)]
    count = sum(layer.size for layer in codes)
    zeros = sum(layer.size - np.count_nonzero(layer) for layer in codes) / max(1, count)
    header = loads(data).bytes_on_disk["header"]
    ours = len(encode_codes(codes)) if codes else 0
    numbers = [bound, leftovers, *general(codes), ours, header, len(data)]
    texts = ["-" if n is None else f"{n:,.0f}" for n in numbers]
    return [f"{count:,}", f"{zeros:.1%}", *texts, f"{len(data) / (bound + leftovers + 300):.4f}"]


def general(network: Network) -> list[int | None]:
    """Bytes of the codes under gzip, xz, zstd and NNCodec; None for what is not installed."""
    plain = plain_bits(network) if network else b""
    return [
        len(gzip.compress(plain, 9)),
        len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        len(zstandard.compress(plain, 19)) if zstandard else None,
        nncodec(network) if nnc and network else None,
    ]


def nncodec(network: Network) -> int:
    """Bytes of NNCodec's bitstream of the codes as integers, nothing quantized: what it decodes is compared."""
    layers = {f"layer{k}": codes.astype(np.int32) for k, codes in enumerate(network)}
    with tempfile.TemporaryDirectory() as folder:
        told = {"bitstream_path": str(Path(folder) / "codes.nnc"), "return_bitstream": True, "verbose": False}
        stream = nnc.compress(layers, use_dq=False, **told)
    decoded = nnc.decompress(stream)
    if not all(np.array_equal(np.reshape(decoded[name], codes.shape), codes) for name, codes in layers.items()):
        raise RuntimeError("what NNCodec decodes differs")
    return len(stream)


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
    bound = sum(map(entropy, network))
    mixed = encode_codes(network)
    if not all(map(np.array_equal, decode_codes(mixed, shapes), network)):
        raise RuntimeError("the decoded codes differ")
    coded = [symbols(codes) for codes in network]
    fields = sum(len(encode_fields(numbers, [bits_per_symbol(levels)])) for numbers, levels in coded)
    packed = [pack(numbers, levels) for numbers, levels in coded]
    sizes = [
        *general(network),
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


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, list[str]]]) -> None:
    """Print Markdown, row by row."""
    print("|".join(["", "network", *columns, ""]))
    print("|---" * (len(columns) + 1) + "|")
    for name, row in rows:
        print("|".join(["", name, *row, ""]), flush=True)
    print()


OPENED = """
import sys, time, torch
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import read
def kilobytes(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
torch.set_num_threads(1)
torch.zeros(1, 3, 32, 32).sum()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, started = kilobytes("VmRSS"), time.process_time()
ReferenceEngine(read(sys.argv[1]))
print(time.process_time() - started, kilobytes("VmHWM") - before)
"""


def costs() -> None:
    """Print what writing and opening ResNet-18 costs."""
    for name, packed in independent():
        spent = seconds(lambda packed=packed: dumps(packed))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.sparsign"
            size = write(packed, path)
            opened = [subprocess.check_output([sys.executable, "-c", OPENED, path]).split() for _ in range(5)]
            reading = seconds(lambda path=path: ReferenceEngine(read(path)))
        weights = sum(node.codes.codes.size for node in packed.layers().values())
        ready, memory = (min(float(run[k]) for run in opened) for k in (0, 1))
        print(
            f"{name}, {size:,} bytes: written in {spent:.2f} s; open to ready {1e3 * ready:.0f} ms in a fresh process, "
            f"{1e3 * reading:.0f} ms again ({weights / reading / 1e6:.1f} M weights/s, all included); peak memory "
            f"{memory / 1024:.0f} MiB, {1024 * memory / (4 * weights):.2f} times the fp32 weights"
        )


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="packed models")
    parser.add_argument("--checkpoints", type=Path, help="folder of float ResNets (.th)")
    options = parser.parse_args()
    if coders._coder is None:
        print("The compiled coder is not built: this takes an hour.\n")
    files = [(path.stem if path.stem != "model" else path.parent.name, read(path)) for path in options.files]
    made = list(independent())
    table(FILES, ((name, file_row(packed)) for name, packed in (*files, *made)))
    networks = list(float_checkpoints(options.checkpoints)) if options.checkpoints else []
    networks += [(name, packed_codes(packed)) for name, packed in made]
    table(COLUMNS, ((name, measure(network)) for name, network in networks))
    costs()


if __name__ == "__main__":
    main()
