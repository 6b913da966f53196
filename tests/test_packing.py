"""Bit packing, the file and its defences, and every way of counting size."""

import gzip
import json
import lzma
import math
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import INPUT, build, layers, prune

from kernels.engine import load_engine
from packing.codecs import CODECS, inflate, pack, packed_size, unpack
from packing.file import MAGIC, PREAMBLE, PackedFileError, dumps, loads, read, write
from packing.size import compressed_code_bytes, node_size, sizes, total_size
from packing.spec import LayerCodes, Node, PackedModel
from packing.structure import irregular_index_bits, layer_structure, structure
from packing.trace import to_packed

# -- symbols -----------------------------------------------------------------------------------------------------------

symbol_runs = st.integers(1, 300).flatmap(
    lambda levels: st.tuples(st.just(levels), st.lists(st.integers(0, levels - 1), max_size=70))
)


@pytest.mark.parametrize("codec", CODECS)
@given(run=symbol_runs)
def test_symbols_survive_every_codec(codec, run):
    levels, symbols = run
    symbols = np.array(symbols, np.uint16)
    data = CODECS[codec].encode(symbols, levels)
    assert np.array_equal(CODECS[codec].decode(data, len(symbols), levels), symbols)


def test_bits_lie_as_described():
    assert pack(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint16), 2) == bytes([0b10110000, 0b10000000])
    assert pack(np.array([2, 1, 0, 0, 2, 1], np.uint16), 3) == bytes([2 + 3 + 2 * 81, 1])
    assert pack(np.array([5, 1, 7], np.uint16), 8) == bytes([0b10100111, 0b10000000])
    assert [packed_size(10**6, levels) for levels in (2, 3, 4, 5, 256)] == [125000, 200000, 250000, 375000, 10**6]


@pytest.mark.parametrize(
    ("data", "count", "levels"), [(b"\xf3", 5, 3), (b"\x03", 1, 3), (b"\x01", 7, 2), (b"\xff", 2, 5), (b"", 1, 2)]
)
def test_bytes_that_no_symbols_make_are_refused(data, count, levels):
    with pytest.raises(ValueError):
        unpack(data, count, levels)


def test_inflation_stops_at_the_declared_size():
    bomb = zlib.compress(bytes(10**7), 9, -15)
    for data, size in ((bomb, 100), (bomb, 10**7 + 1), (bomb[:-3], 10**7), (bomb + b"x", 10**7), (b"\xff\xff", 3)):
        with pytest.raises(ValueError):
            inflate(data, size)


# -- the file ----------------------------------------------------------------------------------------------------------


def quantised(name, seed, levels=1, ratio=0.4):
    """A packed net whose inner layers have integer codes in [-levels, levels] and a scale per filter."""
    net = prune(build(name, seed), ratio)
    codes = {}
    for layer in list(layers(net).values())[1:-1]:
        scale = 0.01 + torch.rand(len(layer.weight), *[1] * (layer.weight.dim() - 1))
        codes[layer] = ((layer.weight * 4 * levels).round().clamp(-levels, levels).short(), scale)
        layer.weight.data = codes[layer][0] * scale
    return to_packed(net, codes.get, INPUT, {"classes": ["a", "b"], "mean": [0.5]})


def regular():
    """A packed binary net with gathered layers."""
    net = build("binary_chain", 0)
    with torch.no_grad():
        for layer in (net[3], net[7]):
            order = torch.rand(layer.weight.shape[:2]).argsort(1)
            layer.weight.copy_(layer.weight.sign() * (order < 5)[..., None, None])
    binary = (net[3], net[7])
    return to_packed(net, lambda m: (m.weight.short(), torch.ones(())) if m in binary else None, INPUT)


def same(a, b):
    return (a is None and b is None) or (a.dtype.kind == b.dtype.kind and np.array_equal(a, b))


def assert_equal(a, b):
    assert (a.input_shape, a.output, a.meta) == (b.input_shape, b.output, b.meta)
    for x, y in zip(a.nodes, b.nodes, strict=True):
        assert (x.op, x.name, x.inputs, x.attrs) == (y.op, y.name, y.inputs, y.attrs)
        assert x.tensors.keys() == y.tensors.keys() and all(same(x.tensors[k], y.tensors[k]) for k in x.tensors)
        if x.codes is not None:
            assert x.codes.full_shape == y.codes.full_shape
            assert all(same(getattr(x.codes, k), getattr(y.codes, k)) for k in vars(x.codes) if k != "full_shape")


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["chain", "residual", "bireal", "concat", "depthwise"]),
    seed=st.integers(0, 999),
    levels=st.sampled_from([1, 2, 7, 200]),
    ratio=st.floats(0, 0.6),
)
def test_a_packed_model_survives_the_file(name, seed, levels, ratio):
    packed = quantised(name, seed, levels, ratio)
    assert_equal(loads(dumps(packed)), packed)


def test_gathers_and_two_signed_scales_survive_the_file():
    packed = regular()
    assert packed.layers()["3"].codes.gather is not None
    packed.layers()["3"].codes.negative_scale = np.array(0.5, np.float32)
    assert_equal(loads(dumps(packed)), packed)


def test_write_replaces_in_one_step_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "net.sps"
    path.write_bytes(b"old")
    packed = quantised("chain", 0)
    assert write(packed, path) == path.stat().st_size == len(dumps(packed))
    assert list(tmp_path.iterdir()) == [path]
    images = torch.randn(2, *INPUT)
    assert torch.equal(load_engine(read(path))(images), load_engine(packed)(images))
    packed.nodes[1].tensors["bias"] = np.zeros(99, np.float32)
    with pytest.raises(ValueError, match=r"node '0' \(conv\): bias has shape"):
        write(packed, path)
    assert_equal(read(path), quantised("chain", 0))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.sps: no such packed model"):
        read(tmp_path / "nothing.sps")


def refused(data):
    with pytest.raises(PackedFileError) as caught:
        loads(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_and_every_changed_byte_is_noticed(tmp_path):
    data = dumps(quantised("residual", 0))
    for length in (*range(0, 40), *range(40, len(data), 37)):
        refused(data[:length])
    for place in (*range(0, 40), *range(40, len(data), 7)):
        refused(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
    refused(data + b"\0")
    assert "not a packed model" in refused(b"PK\3\4" + data)
    assert "version 258 of the format, expected 1" in refused(data[:8] + b"\2\1" + data[10:])
    assert "damaged or cut short" in refused(data[:-1])
    path = tmp_path / "bad.sps"
    path.write_bytes(data[:-1])
    with pytest.raises(PackedFileError, match=r"bad.sps: damaged"):
        read(path)


def split(data):
    _, _, length, inflated, _ = PREAMBLE.unpack_from(data)
    end = PREAMBLE.size + length
    return json.loads(zlib.decompress(data[PREAMBLE.size : end], -15, inflated)), data[end:]


def join(header, sections):
    """A file with a right checksum around any header."""
    text = json.dumps(header).encode()
    deflated = zlib.compress(text, 9, -15)
    head = struct.pack("<8sHII", MAGIC, 1, len(deflated), len(text))
    body = deflated + sections
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


HOSTILE = [
    None,
    True,
    -1,
    0,
    1,
    3,
    7,
    1 << 29,
    10**30,
    1.5,
    math.nan,
    "",
    "deflate",
    "sign",
    [],
    [1 << 20, 1 << 20],
    {},
]


@pytest.mark.parametrize("make", [lambda: quantised("residual", 0), regular])
def test_a_hostile_header_never_crashes(make):
    """Any value anywhere in a well-checksummed header: a clean error, or a model that is valid and runs."""
    header, sections = split(dumps(make()))
    rng = np.random.default_rng(0)
    paths = [path for path in places(header) if path and path[0] != "meta"]
    outcomes = set()
    for _ in range(250):
        path = paths[rng.integers(len(paths))]
        mutated = json.loads(json.dumps(header))
        target = mutated
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = HOSTILE[rng.integers(len(HOSTILE))]
        try:
            packed = loads(join(mutated, sections))
        except PackedFileError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
        else:
            if max(math.prod(shape) for shape in packed.validate().values()) < 1 << 20:
                load_engine(packed)(torch.zeros(1, *packed.input_shape))
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_a_small_file_cannot_claim_much_memory():
    header, sections = split(dumps(quantised("chain", 0)))
    huge = json.loads(json.dumps(header))
    huge["sections"][0][3] = [1 << 28]
    assert "claims" in refused(join(huge, sections))
    huge = json.loads(json.dumps(header))
    weighted = next(record for record in huge["nodes"] if record[0] == "conv")
    weighted[5]["shape"][0] = 1 << 28
    weighted[5].pop("rows", None)
    assert "rows: 268435456 in the layer's shape" in refused(join(huge, sections))
    inflated = struct.pack("<8sHIII", MAGIC, 1, 10, 1 << 25, 0) + bytes(10)
    assert "header of 10 bytes (33554432 inflated)" in refused(inflated)
    assert "malformed" in refused(join([[]] * 3, sections))
    assert "2 bytes after the last section" in refused(join(header, sections + b"xx"))


@pytest.mark.parametrize(
    "original", [[], {"parameters": "many"}, {"dropped": 3}, {"dropped": [["x", [3, None], True]]}]
)
def test_what_is_said_of_the_original_is_checked(original):
    packed = quantised("chain", 0)
    packed.meta["original"] = original
    assert "meta.original" in refused(dumps(packed))


def node(op, *inputs, **attrs):
    return Node(op, "x", inputs, attrs)


def float_codes(rows, cols, kernel=1):
    weight = np.zeros((rows, cols, kernel, kernel), np.float32)
    return LayerCodes(weight.shape, np.arange(rows), np.arange(cols), floats=weight)


def valid_head():
    return [Node("input", "input"), Node("flatten", "flat", ("input",))]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("exec", "input"), "unknown operation 'exec'"),
        (node("relu", "later"), "reads .'later'. which no earlier node makes"),
        (node("relu"), "has 0 inputs"),
        (node("add", "input", "flat"), "differ beyond their channels"),
        (node("maxpool", "input", kernel=(3, 3), padding=(2, 2)), "more than half"),
        (node("maxpool", "input", kernel=(99, 99)), "would have shape"),
        (node("maxpool", "input", stride=(0, 1)), r"stride=\(0, 1\)"),
        (node("maxpool", "input", ceil_mode=1), "ceil_mode=1"),
        (node("hardtanh", "input", min=2.0), "min is above max"),
        (node("relu", "input", slope=0.1), "attributes .'slope'."),
        (node("conv", "input"), "a weight belongs to conv"),
        (node("pad_shortcut", "input", before=1 << 16, after=1 << 16), None),
        (node("avgpool", "flat"), "expected .C, H, W."),
        (Node("select", "x", ("input",), {}, {"index": np.array([0, 5])}), "index goes up to 5"),
        (Node("select", "x", ("input",), {}, {"index": np.array([1, 0])}), "not an increasing list"),
        (Node("affine", "x", ("input",), {}, {"scale": np.zeros(3, np.float32)}), "expected tensors"),
        (Node("conv", "x", ("input",), {}, {}, float_codes(4, 2)), "reads 3 channels, expected 2"),
        (Node("conv", "x", ("input",), {"groups": 3}, {}, float_codes(4, 1)), "4 rows do not divide into 3 groups"),
        (Node("conv", "x", ("input",), {}, {}, float_codes(4, 3, 9)), "would have shape"),
        (Node("flatten", "flat", ("input",)), "its name is taken"),
        (Node("input", "x"), "exactly one input"),
    ],
)
def test_a_model_that_does_not_hang_together_is_refused(bad, message):
    packed = PackedModel([*valid_head(), bad], (3, 8, 8), "flat")
    if message is None:
        packed.validate()
        return
    with pytest.raises(ValueError, match=message):
        packed.validate()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", range(3, 12))
def test_pooled_sizes_are_torchs(size, ceil_mode):
    for kernel, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 3, 1), (2, 3, 1), (3, 1, 0)):
        attrs = {
            "kernel": (kernel, kernel),
            "stride": (stride, stride),
            "padding": (padding,) * 2,
            "ceil_mode": ceil_mode,
        }
        pool, flat = Node("maxpool", "pool", ("input",), attrs), Node("flatten", "flat", ("pool",))
        shapes = PackedModel([Node("input", "input"), pool, flat], (1, size, size), "flat").validate()
        torchs = torch.nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)(torch.zeros(1, 1, size, size))
        assert shapes["pool"] == tuple(torchs.shape[1:])


# -- sizes -------------------------------------------------------------------------------------------------------------


def one_conv(codes, scale=None, **kept):
    """A packed net of one coded conv and a float classifier without bias."""
    rows, cols = codes.shape[:2]
    full = kept.get("full", codes.shape)
    layer = LayerCodes(
        full,
        kept.get("rows", np.arange(rows)),
        kept.get("cols", np.arange(cols)),
        codes.astype(np.int8),
        np.ones((), np.float32) if scale is None else scale,
    )
    head = LayerCodes((2, rows), np.arange(2), np.arange(rows), floats=np.ones((2, rows), np.float32))
    nodes = [
        Node("input", "input"),
        Node("conv", "conv", ("input",), codes=layer),
        Node("affine", "bn", ("conv",), tensors={k: np.ones(rows, np.float32) for k in ("scale", "shift")}),
        Node("globalavgpool", "pool", ("bn",)),
        Node("flatten", "flat", ("pool",)),
        Node("linear", "fc", ("flat",), codes=head),
    ]
    return PackedModel(nodes, (cols, 8, 8), "fc", {"original": {"parameters": 5000, "dropped": []}})


def test_sizes_by_hand():
    codes = np.zeros((8, 4, 3, 3))
    codes.reshape(-1)[:96] = np.tile([1, -1], 48)
    rows, cols = np.arange(8) * 2, np.arange(4)
    packed = one_conv(codes, np.ones(8, np.float32), full=(16, 4, 3, 3), rows=rows)
    assert np.array_equal(packed.layers()["conv"].codes.cols, cols)
    conv = sizes(packed)["conv"]
    assert (conv.parameters, conv.nonzeros, conv.original_parameters) == (288, 96, 576)
    assert conv.theoretical_bits == 288 * 2 + 8 * 32
    # a third of all weights, in 10 full kernels and one of 6 codes; kept rows: 16 equally likely bits
    plain = 288 * -(2 / 3 * math.log2(2 / 3) + 2 * 1 / 6 * math.log2(1 / 6))
    mask = 32 * -(11 / 32 * math.log2(11 / 32) + 21 / 32 * math.log2(21 / 32))
    inner = 99 * -(3 / 99 * math.log2(3 / 99) + 2 * 48 / 99 * math.log2(48 / 99))
    assert conv.entropy_bits == pytest.approx(min(plain, mask + inner) + 8 * 32 + 16)
    total = total_size(packed)
    assert total.parameters == 288 + 16 + 16 and total.original_parameters == 5000 and total.float_bytes == 20000
    assert total.theoretical_bits == conv.theoretical_bits + 32 * 32
    assert total.entropy_bound_bytes == math.ceil((conv.entropy_bits + 32 * 32) / 8)
    assert total_size(packed, conv_only=True) == conv


def test_a_pruned_float_layer_is_bounded_by_its_nonzeros_and_their_places():
    weight = np.zeros((8, 4, 3, 3), np.float32)
    weight.reshape(-1)[:36] = 1.5
    layer = LayerCodes(weight.shape, np.arange(8), np.arange(4), floats=weight)
    places = 288 * -(1 / 8 * math.log2(1 / 8) + 7 / 8 * math.log2(7 / 8))
    node = Node("conv", "conv", codes=layer)
    assert node_size(node, 4).entropy_bits == pytest.approx(36 * 32 + places)
    layer.floats = np.ones_like(weight)
    assert node_size(node, 4).entropy_bits == 288 * 32


def test_dropped_layers_count_as_original_and_as_removed():
    packed = one_conv(np.ones((8, 4, 3, 3)))
    packed.meta["original"]["dropped"] = [["gone", [10, 5, 3, 3], True], ["float", [3, 3, 1, 1], False]]
    assert total_size(packed, conv_only=True).original_parameters == 288 + 450 + 9
    found = structure(packed)
    assert (found.filters, found.filters_removed, found.kernels, found.kernels_removed) == (18, 10, 82, 50)
    assert found.pfr == 10 / 18 and set(layer_structure(packed)) == {"conv", "gone"}


def test_pruned_filter_ratio_counts_cut_and_zero_filters():
    codes = np.ones((6, 4, 3, 3))
    codes[1] = 0
    codes[2, :2] = 0
    found = structure(one_conv(codes, full=(10, 8, 3, 3), rows=np.arange(6), cols=np.arange(4) + 1))
    assert found.pfr == 5 / 10
    assert found.kernel_pfr == 1 - (5 * 4 - 2) / 80


def test_gathered_layers_count_their_codes_and_one_bit_per_kernel():
    packed = regular()
    layer, size = packed.layers()["3"].codes, sizes(packed)["3"]
    assert size.parameters == size.nonzeros == 9 * 5 * 9
    assert size.theoretical_bits == 9 * 5 * 9 + 9 * 8 + 32
    assert structure(packed).kernel_pfr == pytest.approx(1 - (9 * 5 + 6 * 5) / (9 * 8 + 6 * 9))
    assert layer.gather.shape == (9, 5)


def test_two_bit_codes_under_gzip_and_xz():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 0, 1], (64, 32, 3, 3), p=[0.05, 0.9, 0.05])
    found = compressed_code_bytes(one_conv(codes))
    bits = "".join(f"{c + 1:02b}" for c in codes.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert found == {
        "packed": 64 * 32 * 9 // 4,
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), density=st.floats(0.002, 0.5), bits=st.integers(1, 8))
def test_relative_indices_can_be_decoded_and_cost_what_is_said(seed, density, bits):
    rng = np.random.default_rng(seed)
    mask = rng.random((20, 50)) < density
    found = irregular_index_bits(mask, bits)
    costs = {}
    for r in range(2, 13):
        entries, run = [], 0  # (zeros before, is a nonzero)
        for value in mask.ravel():
            if value:
                entries.append((run, True))
                run = 0
            elif run == 2**r - 1:
                entries.append((run, False))
                run = 0
            else:
                run += 1
        while entries and not entries[-1][1]:
            entries.pop()
        decoded = np.cumsum([before + 1 for before, _ in entries]) - 1
        assert [p for p, (_, real) in zip(decoded, entries, strict=True) if real] == np.flatnonzero(mask).tolist()
        costs[r] = len(entries) * (bits + r)
        if r == found.index_bits:
            assert found.entries == len(entries)
    assert found.relative == min(costs.values()) == costs[found.index_bits]
    assert found.csr == mask.sum() * (bits + 6) + 21 * math.ceil(math.log2(mask.sum() + 1))


def test_best_index_width_grows_with_sparsity_as_expected_from_random_positions():
    """Expected bits per nonzero weight at 4-bit values: 9.1, 9.6, 11.3, 13.0 at densities 1/8, 1/12, 1/36, 1/100."""
    rng = np.random.default_rng(0)
    widths = []
    for one_in, expected in ((8, 9.1), (12, 9.6), (36, 11.3), (100, 13.0)):
        mask = rng.random((1000, 1000)) < 1 / one_in
        found = irregular_index_bits(mask, 4)
        widths.append(found.index_bits)
        assert found.relative / mask.sum() == pytest.approx(expected, abs=0.1)
    assert all(a < b for a, b in pairwise(widths))


def test_ternary_files_stay_near_their_entropy_and_headers_stay_small():
    packed = quantised("residual", 0)
    data = dumps(packed)
    header = PREAMBLE.unpack_from(data)[2]
    assert header < 1200
    assert len(data) - header < 1.2 * total_size(packed).entropy_bound_bytes
