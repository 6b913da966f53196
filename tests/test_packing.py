"""Values, layouts, codecs: weight == layout.expand(values(codes)) exactly, and what was packed survives the file."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import INPUT, NETS, build, prune, quantised, regular
from torch import nn

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.codecs import CODECS, STREAMS, pack, packed_size, unpack
from sparsign.packing.encode import laid_out, layer_codes
from sparsign.packing.file import dumps, loads, read, write
from sparsign.packing.floats import FLOAT_CODECS, PRECISIONS, from_bits, precision, to_bits
from sparsign.packing.layouts import LAYOUTS, Dense, Gathered, Groups, Irregular
from sparsign.packing.trace import to_packed
from sparsign.packing.values import VALUES, Floats, OneScale, RowGroupScale, RowScale, SignPair, Table
from sparsign.packing.weight import LayerCodes

shapes = st.one_of(st.tuples(*[st.integers(1, 6)] * 4), st.tuples(*[st.integers(1, 9)] * 2))


def random_layout(name, shape, rng):
    """A layout over a weight of this shape; gathered columns and groups of a random width that fits."""
    rows, cols = shape[:2]
    if name == "gathered":
        mask = rng.random((rows, cols)).argsort(axis=1) < rng.integers(1, cols + 1)
        return Gathered(shape, mask)
    if name == "groups":
        width = rng.choice([d for d in range(1, cols + 1) if cols % d == 0])
        return Groups(shape, rng.random((rows, cols // width)) < 0.5)
    return Irregular(shape, rng.random(shape) < 0.4) if name == "irregular" else Dense(shape)


def random_values(name, layout, columns, rng):
    """(a way to values, codes of the layout's stored shape)."""
    rows, stored = layout.shape[0], layout.stored_shape()

    def scale(*shape):
        return rng.uniform(0.1, 3, shape).astype(np.float32)

    if name == "float":
        return Floats(), rng.standard_normal(stored).astype(np.float32)
    if name == "table":
        return Table(scale(5)), rng.integers(0, 6, stored).astype(np.int8)
    width = int(rng.integers(1, columns + 1))
    values = {
        "scale": lambda: OneScale(scale()),
        "row_scale": lambda: RowScale(scale(rows)),
        "row_group_scale": lambda: RowGroupScale(scale(rows, -(-columns // width)), width),
        "sign_pair": lambda: SignPair(scale(rows), scale(rows)) if rng.random() < 0.5 else SignPair(scale(), scale()),
    }[name]()
    return values, rng.integers(-300, 301, stored).astype(np.int16)


def by_loops(layer):
    """The fp32 weight, one number at a time."""
    weight, codes, values = np.zeros(layer.shape, np.float32), layer.dense_codes(), layer.values
    for place in np.ndindex(*layer.shape):
        code, row, col = codes[place], place[0], layer.cols[place[1]]
        if isinstance(values, Floats):
            weight[place] = code
        elif isinstance(values, Table):
            weight[place] = 0 if code == 0 else values.levels[code - 1]
        elif isinstance(values, SignPair):
            scale = values.positive if code > 0 else values.negative
            weight[place] = (scale[row] if scale.ndim else scale) * np.float32(code)
        else:
            scale = values.scale
            scale = scale[row, col // values.width] if scale.ndim == 2 else scale[row] if scale.ndim else scale
            weight[place] = scale * np.float32(code)
    return weight


@settings(max_examples=200, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    values=st.sampled_from(sorted(VALUES)),
    shape=shapes,
    seed=st.integers(0, 10**6),
)
def test_a_weight_is_its_layouts_expansion_of_its_codes_values(layout, values, shape, seed):
    rng = np.random.default_rng(seed)
    layout = random_layout(layout, shape, rng)
    columns = shape[1] + 3
    values, codes = random_values(values, layout, columns, rng)
    cols = np.sort(rng.permutation(columns)[: shape[1]])
    layer = LayerCodes((shape[0], columns, *shape[2:]), np.arange(shape[0]), cols, codes, values, layout)
    layer.check(len(shape))
    expected = by_loops(layer)
    assert np.array_equal(layer.weight(), expected)
    assert np.array_equal(layer.nonzero(), expected != 0)
    assert np.array_equal(layout.take(layout.expand(codes)), codes)
    kernels = layout.kernels()
    assert kernels is None or not layer.dense_codes()[~kernels].any()
    pair = values.signed_scales(shape[0])
    if pair is not None:
        signed = np.where(layer.dense_codes() > 0, *(s.reshape(-1, *[1] * (len(shape) - 1)) for s in pair))
        assert np.array_equal(signed * layer.dense_codes().astype(np.float32), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": OneScale(np.ones(3, np.float32))}, r"scale has shape \[3\], expected \[\]"),
        ({"values": RowScale(np.ones(3, np.float32))}, r"scale has shape \[3\], expected \[2\]"),
        ({"values": RowGroupScale(np.ones((2, 3), np.float32), 2)}, r"expected \[2, 2\]"),
        ({"values": SignPair(np.ones((), np.float32), np.ones(2, np.float32))}, "negative has shape"),
        ({"values": Table(np.ones(1, np.float32))}, "codes from 0 to 2 in a table of 1 levels"),
        ({"values": OneScale(np.array(np.nan, np.float32))}, "NaN"),
        ({"values": OneScale(np.array(2e38, np.float32))}, r"a scale of 2e\+38 times a code of 2 is no fp32"),
        ({"layout": Dense((2, 3))}, "layout of shape"),
        ({"layout": Irregular((2, 4), np.ones((2, 3), bool))}, "mask of single weights"),
        ({"layout": Gathered((2, 4), np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool))}, "unequally many"),
        ({"layout": Groups((2, 4), np.ones((2, 3), bool))}, "does not divide"),
        ({"codes": np.zeros((2, 3), np.int8)}, "codes have shape"),
        ({"codes": np.zeros((2, 4), np.int32)}, "expected int8 or int16"),
        ({"rows": np.array([1, 0])}, "not an increasing list"),
        ({"full_shape": (2, 4, 1)}, "expected 2 sizes"),
    ],
)
def test_arrays_that_do_not_agree_are_refused(change, message):
    codes = np.array([[0, 1, 2, 0], [1, 1, 0, 2]], np.int8)
    good = {"full_shape": (2, 4), "rows": np.arange(2), "cols": np.arange(4), "codes": codes}
    good |= {"values": OneScale(np.ones((), np.float32)), "layout": Dense((2, 4))}
    LayerCodes(**good).check(2)
    with pytest.raises(ValueError, match=message):
        LayerCodes(**good | change).check(2)


def sparse(shape, density, codes):
    rng = np.random.default_rng(0)
    numbers = rng.choice([-1, 1], shape) if codes else rng.standard_normal(shape)
    return (numbers * (rng.random(shape) < density)).astype(np.int8 if codes else np.float32)


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (16, 16)])
@pytest.mark.parametrize(
    ("density", "codes", "name"),
    [(1, True, "dense"), (0.6, True, "dense"), (1, False, "dense"), (0.2, False, "irregular")],
)
def test_the_cheapest_layout_is_taken(shape, density, codes, name):
    dense = sparse(shape, density, codes)
    found = laid_out(shape, np.arange(len(dense)), np.arange(dense.shape[1]), dense, Floats())
    assert found.layout.name == name and np.array_equal(found.layout.expand(found.codes), dense)


@pytest.mark.parametrize("width", [16, 4, 1])
def test_groups_that_are_gone_make_a_layout_of_groups(width):
    rng = np.random.default_rng(0)
    alive = (rng.random((32, 32 // width)) < 0.3).repeat(width, axis=1)[..., None, None]
    dense = (rng.choice([-1, 1], (32, 32, 3, 3)) * alive).astype(np.int8)
    found = laid_out(dense.shape, np.arange(32), np.arange(32), dense, OneScale(np.ones((), np.float32)))
    assert (found.layout.name, found.layout.width) == ("groups", width)


def encoded(scale, codes, weight):
    layer = torch.nn.Conv2d(codes.shape[1], len(codes), 1, bias=False)
    layer.weight.data = weight
    rows, cols = np.arange(len(codes)), np.arange(codes.shape[1])
    return layer_codes("conv", layer, (codes, scale), rows, cols)


def test_every_kind_of_scale_that_a_method_may_give():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-3, 4, (6, 8, 1, 1), generator=generator)
    rows, groups = (torch.rand(*shape, generator=generator) for shape in ((6, 1, 1, 1), (6, 4, 1, 1)))
    level = torch.tensor([-0.3, 0.7, 1.1])
    found = {
        "scale": encoded(rows[0, 0, 0, 0], codes, rows[0] * codes),
        "row_scale": encoded(rows, codes, rows * codes),
        "row_group_scale": encoded(groups, codes, groups.repeat_interleave(2, 1) * codes),
        "sign_pair": encoded((rows, 2 * rows), codes, torch.where(codes > 0, rows, 2 * rows) * codes),
        "table": encoded({"table": level}, codes.abs(), torch.tensor([0, *level])[codes.abs()]),
    }
    assert all(layer.values.name == name for name, layer in found.items())
    with pytest.raises(ValueError, match="layer conv: codes become numbers by"):
        encoded({"spline": level}, codes, codes.float())
    with pytest.raises(ValueError, match="groups that divide 8 columns"):
        encoded(torch.rand(6, 3, 1, 1), codes, codes.float())


# -- codecs ------------------------------------------------------------------------------------------------------------

number_runs = st.lists(st.integers(-300, 300), min_size=1, max_size=9, unique=True).flatmap(
    lambda levels: st.tuples(st.just(sorted(levels)), st.lists(st.sampled_from(levels), max_size=70))
)


@pytest.mark.parametrize("codec", CODECS)
@given(run=number_runs)
def test_integers_survive_every_codec(codec, run):
    levels, numbers = np.array(run[0]), np.array(run[1], np.int16)
    parameters, data = CODECS[codec].encode(numbers, levels)
    assert np.array_equal(CODECS[codec].decode(data, numbers.shape, levels, parameters), numbers)


@pytest.mark.parametrize("codec", FLOAT_CODECS)
@given(values=st.lists(st.floats(width=16), max_size=40), kind=st.sampled_from(sorted(PRECISIONS)))
def test_floats_survive_every_codec_at_the_precision_that_holds_them(codec, values, kind):
    array = np.array(values, np.float16).astype(np.float32) if kind == "fp16" else np.array(values, np.float32)
    array = (array.view(np.uint32) >> 16 << 16).view(np.float32) if kind == "bf16" else array
    array = array[np.isfinite(array)]
    data = FLOAT_CODECS[codec].encode(to_bits(array, kind), kind)
    found = from_bits(FLOAT_CODECS[codec].decode(data, len(array), kind), kind)
    assert np.array_equal(found.view(np.uint32), array.view(np.uint32))
    assert np.array_equal(from_bits(to_bits(array, precision(array)), precision(array)), array)


def test_the_lowest_precision_that_holds_everything_is_found():
    assert precision(np.float32([1, 0.5, -(2.0**100)])) == "bf16"
    assert precision(np.float32([1.001953125, 7])) == "fp16"
    assert precision(np.float32([0.1, 1])) == "fp32"
    assert precision(np.float32([])) == "bf16"


def test_bits_lie_as_described():
    assert pack(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint16), 2) == bytes([0b10110000, 0b10000000])
    assert pack(np.array([2, 1, 0, 0, 2, 1], np.uint16), 3) == bytes([2 + 3 + 2 * 81, 1])
    assert pack(np.array([5, 1, 7], np.uint16), 8) == bytes([0b10100111, 0b10000000])
    assert [packed_size(10**6, levels) for levels in (1, 2, 3, 4, 5)] == [0, 125000, 200000, 250000, 375000]


@pytest.mark.parametrize(
    ("data", "count", "levels"), [(b"\xf3", 5, 3), (b"\x03", 1, 3), (b"\x01", 7, 2), (b"\xff", 2, 5), (b"", 1, 2)]
)
def test_bytes_that_no_symbols_make_are_refused(data, count, levels):
    with pytest.raises(ValueError):
        unpack(data, count, levels)


# -- the file ----------------------------------------------------------------------------------------------------------


def same(a, b):
    return a.dtype.kind == b.dtype.kind and np.array_equal(a, b)


def assert_equal(a, b):
    assert (a.input_shape, a.output, a.meta) == (b.input_shape, b.output, b.meta)
    for x, y in zip(a.nodes, b.nodes, strict=True):
        assert (x.op, x.name, x.inputs, x.attrs) == (y.op, y.name, y.inputs, y.attrs)
        assert x.tensors.keys() == y.tensors.keys() and all(same(x.tensors[k], y.tensors[k]) for k in x.tensors)
        assert (x.codes is None) == (y.codes is None)
        if x.codes is not None:
            assert x.codes.full_shape == y.codes.full_shape
            assert (x.codes.values.name, x.codes.layout.name) == (y.codes.values.name, y.codes.layout.name)
            assert all(same(getattr(x.codes, k), getattr(y.codes, k)) for k in ("rows", "cols", "codes"))
            assert np.array_equal(x.codes.weight(), y.codes.weight())


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["chain", "residual", "bireal", "concat", "depthwise"]),
    seed=st.integers(0, 999),
    levels=st.sampled_from([1, 2, 7, 200]),
    ratio=st.floats(0, 0.6),
)
def test_a_packed_model_survives_the_file(name, seed, levels, ratio):
    packed = quantised(name, seed, levels, ratio)
    data = dumps(packed)
    assert_equal(loads(data), packed)
    assert dumps(loads(data)) == data


def test_a_map_may_be_flattened_to_more_features_than_there_are_levels():
    net = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Flatten(), nn.Linear(5 * 128 * 128, 2)).eval()
    net[2].weight.data[:, ::3] = 0
    packed = to_packed(net, lambda layer: None, (1, 128, 128))
    assert_equal(loads(dumps(packed)), packed)


def test_modules_that_images_do_not_pass_are_not_part_of_the_uncut_network():
    net = build("chain", 0)
    plain = to_packed(net, lambda layer: None, INPUT).meta["original"]["parameters"]
    net[0].auxiliary = nn.Linear(1000, 1000)
    assert to_packed(net, lambda layer: None, INPUT).meta["original"]["parameters"] == plain


@pytest.mark.parametrize("name", NETS)
def test_the_file_of_a_pruned_net_gives_the_nets_logits(name):
    net = prune(build(name, 3), 0.4)
    images = torch.randn(3, *INPUT, generator=torch.Generator().manual_seed(0))
    packed = loads(dumps(to_packed(net, lambda layer: None, INPUT)))
    with torch.no_grad():
        torch.testing.assert_close(ReferenceEngine(packed)(images), net(images), atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(layout=st.sampled_from(sorted(LAYOUTS)), values=st.sampled_from(sorted(VALUES)), seed=st.integers(0, 10**6))
def test_every_layout_and_way_to_values_survives_the_file(layout, values, seed):
    rng = np.random.default_rng(seed)
    packed = regular()
    node = packed.layers()["3"]
    layout = random_layout(layout, node.codes.shape, rng)
    values, codes = random_values(values, layout, node.codes.full_shape[1], rng)
    node.codes = LayerCodes(node.codes.full_shape, node.codes.rows, node.codes.cols, codes, values, layout)
    assert_equal(loads(dumps(packed)), packed)


def test_binary_noise_stays_plain_and_zeros_are_modelled():
    net = build("chain", 0)
    layer = net[7] = torch.nn.Conv2d(9, 700, 3)
    net[10] = torch.nn.Linear(700 * 9, 6)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign())
        layer.weight[layer.weight == 0] = 1
    packed = to_packed(net.eval(), lambda m: (m.weight.short(), torch.ones(())) if m is layer else None, INPUT)
    found = loads(dumps(packed))
    assert found.bytes_on_disk["7"] - found.layers()["7"].tensors["bias"].nbytes <= layer.weight.numel() / 8 + 16
    assert sum(found.bytes_on_disk.values()) == len(dumps(packed))


def test_what_the_model_of_one_layer_learns_serves_the_next():
    rng = np.random.default_rng(0)
    arrays = [(rng.random((8, 8, 3, 3)) < 0.05).astype(np.int8) for _ in range(6)]
    together = STREAMS["mixing"].encode(arrays, [None] * 6)
    alone = [STREAMS["mixing"].encode([array], [None]) for array in arrays]
    assert len(together) < 0.95 * sum(map(len, alone))
    found = STREAMS["mixing"].decode(together, [a.shape for a in arrays], [None] * 6)
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))


def test_write_replaces_in_one_step_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "net.sps"
    path.write_bytes(b"old")
    packed = quantised("chain", 0)
    assert write(packed, path) == path.stat().st_size == len(dumps(packed))
    assert list(tmp_path.iterdir()) == [path]
    images = torch.randn(2, *INPUT)
    assert torch.equal(ReferenceEngine(read(path))(images), ReferenceEngine(packed)(images))
    packed.nodes[1].tensors["bias"] = np.zeros(99, np.float32)
    with pytest.raises(ValueError, match=r"node '0' \(conv\): bias has shape"):
        write(packed, path)
    assert_equal(read(path), quantised("chain", 0))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.sps: no such packed model"):
        read(tmp_path / "nothing.sps")
