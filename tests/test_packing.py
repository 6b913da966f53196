"""Bit packing, the file and its defences."""

import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import INPUT, quantised, regular

from sparsign.kernels.engine import load_engine
from sparsign.packing.codecs import CODECS, inflate, pack, packed_size, unpack
from sparsign.packing.file import MAGIC, PREAMBLE, PackedFileError, dumps, loads, read, write
from sparsign.packing.spec import LayerCodes, Node, PackedModel

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
