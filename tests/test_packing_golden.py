"""Files of today's format stay readable: golden files of every codec, layout and way to values, and a second reader.

`python tests/test_packing_golden.py` writes new ones, which a new codec, layout or way to values needs; never the old.
"""

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from sparsign.packing import codecs, floats, writer
from sparsign.packing.dictionary import DICTIONARY
from sparsign.packing.file import dumps, loads
from sparsign.packing.layouts import LAYOUTS, Dense, Gathered, Groups, Irregular
from sparsign.packing.spec import Node, PackedModel
from sparsign.packing.values import VALUES, Floats, OneScale, RowGroupScale, RowScale, SignPair, Table
from sparsign.packing.weight import LayerCodes

FOLDER = Path(__file__).parent / "golden"
FILES = {
    "pack": ("pack", None, "raw"),
    "deflate": ("deflate", None, "planes"),
    "fields": ("fields", None, "fields"),
    "mixing": ("pack", "mixing", "raw"),
}
"""name -> codecs of sections, stream and floats."""


def every_kind() -> PackedModel:
    """A chain in which every layout and every way to values occurs, with kept rows and columns and all precisions."""
    rng = np.random.default_rng(11)

    def scale(*shape):
        return np.array(rng.integers(1, 99, shape) / rng.choice([64, 100]), np.float32)

    def layer(full, rows, cols, layout, values, levels=(-1, 0, 1)):
        stored = layout.stored_shape()
        codes = np.float32(rng.standard_normal(stored)) if levels is None else rng.choice(levels, stored)
        codes = codes if levels is None else codes.astype(np.int16 if max(levels) > 127 else np.int8)
        return LayerCodes(full, np.array(rows), np.array(cols), codes, values, layout)

    six = list(range(6))
    gathered = rng.random((6, 6)).argsort(axis=1) < 2
    layers = [
        layer((8, 3, 3, 3), [0, 1, 3, 4, 6, 7], range(3), Dense((6, 3, 3, 3)), RowScale(scale(6))),
        layer((6, 6, 3, 3), six, six, Gathered((6, 6, 3, 3), gathered), OneScale(scale()), (-1, 1)),
        layer((6, 8, 3, 3), six, six, Groups((6, 6, 3, 3), rng.random((6, 2)) < 0.6), SignPair(scale(6), scale(6))),
        layer((6, 6, 3, 3), six, six, Irregular((6, 6, 3, 3), rng.random((6, 6, 3, 3)) < 0.2), Floats(), None),
        layer(
            (6, 6, 3, 3), six, six, Irregular((6, 6, 3, 3), rng.random((6, 6, 3, 3)) < 0.3), SignPair(scale(), scale())
        ),
        layer((6, 6, 1, 1), six, six, Dense((6, 6, 1, 1)), RowGroupScale(scale(6, 2), 3), (-300, -2, 0, 1, 2, 300)),
        layer((6, 6, 3, 3), six, six, Dense((6, 6, 3, 3)), Table(scale(3)), (0, 1, 2, 3)),
    ]
    nodes, before = [Node("input", "x")], "x"
    for k, codes in enumerate(layers):
        nodes += [Node("conv", f"conv{k}", (before,), {"padding": (1, 1)}, {}, codes)]
        before = f"conv{k}"
    bias = {"bias": np.float32([0.5, -0.1, 3e-5, 2])}
    head = layer((4, 6), range(4), six, Groups((4, 6), rng.random((4, 6)) < 0.7), RowScale(scale(4)), (-1, 1))
    nodes += [Node("globalavgpool", "pool", (before,)), Node("flatten", "flat", ("pool",))]
    nodes += [Node("linear", "fc", ("flat",), {}, bias, head)]
    return PackedModel(nodes, (3, 8, 8), "fc", {"model": {"name": "golden"}, "seed": 11})


def digests(packed: PackedModel) -> dict[str, str]:
    """SHA-256 of every layer's weight and bias as little-endian fp32."""
    arrays = {name: node.codes.weight() for name, node in packed.layers().items()}
    arrays |= {f"{n.name}.{key}": t for n in packed.nodes for key, t in n.tensors.items()}
    return {name: hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()[:16] for name, array in arrays.items()}


def coded_by(section: str, stream: str | None, pool: str) -> bytes:
    """The file's bytes with these codecs alone."""
    with (
        mock.patch.object(writer, "CODECS", {section: codecs.CODECS[section]}),
        mock.patch.object(writer, "STREAMS", {stream: codecs.STREAMS[stream]} if stream else {}),
        mock.patch.object(writer, "FLOAT_CODECS", {pool: floats.FLOAT_CODECS[pool]}),
    ):
        return dumps(every_kind())


def expected() -> dict[str, str]:
    return json.loads((FOLDER / "digests.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_golden_files_stay_readable(name):
    packed = loads((FOLDER / f"{name}.sparsign").read_bytes())
    assert digests(packed) == expected()
    assert packed.output == "fc" and packed.meta == {"model": {"name": "golden"}, "seed": 11}


def test_golden_files_hold_every_codec_layout_and_way_to_values():
    layers = [node.codes for node in every_kind().layers().values()]
    assert {layer.layout.name for layer in layers} == set(LAYOUTS)
    assert {layer.values.name for layer in layers} == set(VALUES)
    assert {section for section, _, _ in FILES.values()} == set(codecs.CODECS)
    assert {stream for _, stream, _ in FILES.values()} - {None} == set(codecs.STREAMS)
    assert {pool for _, _, pool in FILES.values()} == set(floats.FLOAT_CODECS)
    assert zlib.crc32(DICTIONARY) == DICTIONARY_CRC and f"{DICTIONARY_CRC:08x}" in FORMAT


@pytest.mark.parametrize("name", FILES)
def test_the_writer_keeps_its_bytes_but_for_the_deflated_header(name):
    written, golden = coded_by(*FILES[name]), (FOLDER / f"{name}.sparsign").read_bytes()
    assert parts(written) == parts(golden)


# -- a second reader, of FORMAT.md alone: the container, `pack` and `raw` ----------------------------------------------

DICTIONARY_CRC = 0x105171B2
FORMAT = (Path(__file__).parent.parent / "packing" / "FORMAT.md").read_text(encoding="utf-8")


def parts(data: bytes) -> tuple[dict, bytes]:
    """(header, sections)."""
    magic, version, crc, deflated, inflated = struct.unpack_from("<8sHIII", data)
    assert (magic, version, crc) == (b"SPARSIGN", 2, zlib.crc32(data[:10] + data[14:]))
    text = zlib.decompressobj(-15, zdict=DICTIONARY).decompress(data[22 : 22 + deflated])
    assert len(text) == inflated
    return json.loads(text), data[22 + deflated :]


def unpacked(data: bytes, count: int, levels: list[int]) -> np.ndarray:
    """Codec `pack`."""
    if len(levels) == 3:
        symbols = [byte // 3**k % 3 for byte in data for k in range(5)]
    else:
        width = max(1, math.ceil(math.log2(len(levels))))
        bits = "".join(f"{byte:08b}" for byte in data)
        symbols = [int(bits[k : k + width], 2) for k in range(0, width * count, width)]
    return np.array(levels)[symbols[:count]]


def second_reader(data: bytes) -> dict[str, np.ndarray]:
    """Weights and tensors of a file whose every section is coded by `pack` or `raw`."""
    header, rest = parts(data)
    pools, used = {}, {}

    def cut(size):
        nonlocal rest
        piece, rest = rest[:size], rest[size:]
        return piece

    def integers(entry, count, levels=(0, 1)):
        codec, size, *more = entry
        assert codec == "pack"
        return unpacked(cut(size), count, list(*more) if more else list(levels))

    def take(entry):
        kind, *shape = entry
        start = used[kind]
        used[kind] += math.prod(shape)
        return pools[kind][start : used[kind]].reshape(shape)

    for kind, codec, size, count in header["pools"]:
        assert codec == "raw" and size == count * {"fp32": 4, "bf16": 2, "fp16": 2}[kind]
        bits = np.frombuffer(cut(size), "<u4" if kind == "fp32" else "<u2").astype(np.uint32)
        pools[kind] = bits.astype("<u2").view("<f2") if kind == "fp16" else (bits << 16 * (kind == "bf16")).view("<f4")
        pools[kind], used[kind] = pools[kind].astype(np.float32), 0
    assert header["streams"] == [[], []]
    weights = [(node[1], node[5]) for node in header["nodes"] if len(node) > 5]
    kept, masks, codes, found = {}, {}, {}, {}
    for name, weight in weights:
        shape = list(weight["shape"])
        for axis, key in enumerate(("rows", "cols")):
            flags = integers(weight[key][1], shape[axis]) if key in weight else np.ones(shape[axis], int)
            kept[name, axis] = np.flatnonzero(flags)
            assert len(kept[name, axis]) == (weight[key][0] if key in weight else shape[axis])
            shape[axis] = len(kept[name, axis])
        layout = weight.get("layout", "dense")
        count = {"dense": [1, 1], "gathered": shape[:2], "irregular": shape}.get(layout)
        count = [shape[0], shape[1] // weight.get("width", 1)] if count is None else count
        mask = integers(weight["mask"], math.prod(count)) if layout != "dense" else np.ones(1, int)
        mask = mask.reshape(count + [1] * (len(shape) - len(count)))
        if layout == "groups":
            mask = mask.repeat(weight.get("width", 1), axis=1)
        masks[name] = np.broadcast_to(mask, shape) == 1
    for name, weight in weights:
        if "values" in weight:
            mask = masks[name]
            kernels = mask.reshape(*mask.shape[:2], -1).any(axis=2)
            dense = np.zeros(mask.shape, int)
            dense[kernels] = integers(weight["codes"], dense[kernels].size).reshape(dense[kernels].shape)
            codes[name] = dense
    for node in header["nodes"]:
        for key, entry in (node[4] if len(node) > 4 else {}).items():
            found[f"{node[1]}.{key}"] = take(entry)
        if len(node) > 5:
            name, weight = node[1], node[5]
            mask = masks[name]
            found[name] = np.zeros(mask.shape, np.float32)
            if "values" not in weight:
                found[name][mask] = take([weight["codes"], int(mask.sum())])
                continue
            kind, *entries = weight["values"]
            values = [take(entry) if isinstance(entry, list) else entry for entry in entries]
            for place in np.argwhere(mask):
                code, row, col = int(codes[name][tuple(place)]), place[0], kept[name, 1][place[1]]
                if kind == "table":
                    number = 0 if code == 0 else values[0][code - 1]
                elif kind == "row_group_scale":
                    number = values[0][row, col // values[1]] * np.float32(code)
                else:
                    scale = values[-1] if code < 0 else values[0]
                    number = (scale[row] if scale.ndim else scale) * np.float32(code)
                found[name][tuple(place)] = number
    assert not rest and all(used[kind] == len(pools[kind]) for kind in pools)
    return found


def test_a_reader_of_the_description_alone_finds_the_same_numbers():
    found = second_reader((FOLDER / "pack.sparsign").read_bytes())
    assert {k: hashlib.sha256(v.astype("<f4").tobytes()).hexdigest()[:16] for k, v in found.items()} == expected()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, kinds in FILES.items():
        path = FOLDER / f"{name}.sparsign"
        if not path.exists():
            path.write_bytes(coded_by(*kinds))
    (FOLDER / "digests.json").write_text(json.dumps(digests(every_kind()), indent=1) + "\n")
