"""What is in a packed file: `python -m sparsign.packing FILE [FILE ...]` prints a table of its layers.

Columns: the weight's shape before and after the cut, the part of the uncut weights that is not zero, the layout, the
levels of its codes (float: none), the file's bytes for the layer with its bias and structure, and those in bits per
uncut weight. Below: operations without a weight, the header, layers of which nothing is left, and the checksum.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from pathlib import Path

import numpy as np

from sparsign.packing.file import read
from sparsign.packing.limits import add_options, from_options
from sparsign.packing.spec import Node, PackedModel

ROW = "{:32} {:>16} {:>16} {:>8} {:>9} {:>6} {:>10} {:>7}"


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _layer(node: Node, on_disk: int) -> str:
    codes, whole = node.codes, math.prod(node.codes.full_shape)
    levels = str(len(np.unique(codes.dense_codes()))) if codes.coded else "float"
    density = np.count_nonzero(codes.stored()) / whole
    before, after, bits = _times(codes.full_shape), _times(codes.shape), f"{8 * on_disk / whole:.3f}"
    return ROW.format(node.name[-32:], before, after, f"{density:.2%}", codes.layout.name, levels, f"{on_disk:,}", bits)


def table(packed: PackedModel) -> str:
    """The table of a packed model that was read from a file."""
    on_disk = packed.bytes_on_disk
    layers = packed.layers()
    lines = [ROW.format("layer", "before", "after", "nonzero", "layout", "levels", "bytes", "bits")]
    lines += [_layer(node, on_disk[name]) for name, node in layers.items()]
    others = sum(size for name, size in on_disk.items() if name not in layers and name != "header")
    for name, size in (("other operations", others), ("header", on_disk["header"]), ("all", sum(on_disk.values()))):
        lines.append(ROW.format(name, "", "", "", "", "", f"{size:,}", "").rstrip())
    dropped = packed.meta.get("original", {}).get("dropped", [])
    lines += [f"nothing is left of {name} {_times(tuple(shape))}" for name, shape, _ in dropped]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of each file; 1 if any can't be read, with one line on stderr for it."""
    parser = argparse.ArgumentParser(
        "sparsign.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_options(parser)
    given, failed = parser.parse_args(arguments), 0
    for path in given.files:
        try:
            print(f"{path}\n{table(read(path, from_options(given)))}\ncrc32 {zlib.crc32(path.read_bytes()):08x}")
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
