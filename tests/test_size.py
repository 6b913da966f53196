"""Every way of counting size, against counts by hand and encodings that can be read back."""

import gzip
import lzma
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import layer, quantised, regular

from sparsign.evaluation.storage import irregular_index_bits
from sparsign.packing import writer
from sparsign.packing.encode import laid_out
from sparsign.packing.file import dumps, loads
from sparsign.packing.size import compressed_code_bytes, node_size, sizes, total_size
from sparsign.packing.spec import Node, PackedModel
from sparsign.packing.values import Floats


def one_conv(codes, scale=None, **kept):
    """A packed net of one coded conv and a float classifier without bias."""
    rows, cols = codes.shape[:2]
    head = layer(np.ones((2, rows), np.float32))
    nodes = [
        Node("input", "input"),
        Node("conv", "conv", ("input",), codes=layer(codes.astype(int), scale, **kept)),
        Node("affine", "bn", ("conv",), tensors={k: np.full(rows, 2, np.float32) for k in ("scale", "shift")}),
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
    # a third of all weights; kept rows: 16 equally likely bits
    plain = 288 * -(2 / 3 * math.log2(2 / 3) + 2 * 1 / 6 * math.log2(1 / 6))
    assert conv.entropy_bits == pytest.approx(plain + 8 * 32 + 16)
    total = total_size(packed)
    assert total.parameters == 288 + 16 + 16 and total.original_parameters == 5000 and total.float_bytes == 20000
    assert total.theoretical_bits == conv.theoretical_bits + 32 * 32
    assert total.entropy_bound_bytes == math.ceil((conv.entropy_bits + 32 * 32) / 8)
    assert total_size(packed, conv_only=True) == conv


def test_a_learned_shift_counts_its_numbers_once():
    """It is packed as an affine map whose scale is 1."""
    tensors = {"scale": np.ones(8, np.float32), "shift": np.arange(8, dtype=np.float32)}
    size = node_size(Node("affine", "shift", ("x",), tensors=tensors), 8)
    assert (size.parameters, size.nonzeros, size.theoretical_bits, size.entropy_bits) == (8, 7, 256, 256)
    other = node_size(Node("affine", "bn", ("x",), tensors=tensors | {"scale": 2 * tensors["scale"]}), 8)
    assert other.parameters == 16


def test_many_codes_are_modelled_only_where_that_saves_a_hundredth(monkeypatch):
    """Signs whose mean differs from filter to filter: a model learns it, and for many codes has to save 1 % by it."""

    def length(spread, quick):
        monkeypatch.setattr(writer, "QUICK", quick)
        rng = np.random.default_rng(0)
        share = rng.uniform(0.5 - spread, 0.5 + spread, (64, 1, 1, 1))
        packed = one_conv(np.where(rng.random((64, 64, 3, 3)) < share, 1, -1), np.ones(64, np.float32))
        data = dumps(packed)
        assert np.array_equal(loads(data).layers()["conv"].codes.codes, packed.layers()["conv"].codes.codes)
        return len(data)

    plain = length(0.0, 1 << 20)
    assert 0.99 * plain < length(0.12, 1 << 20) < length(0.12, 1000) <= plain
    assert length(0.16, 1000) == length(0.16, 1 << 20) < 0.99 * plain


def test_a_pruned_float_layer_is_bounded_by_its_nonzeros_and_their_places():
    weight = np.zeros((8, 4, 3, 3), np.float32)
    weight.reshape(-1)[:36] = 1.5
    places = 288 * -(1 / 8 * math.log2(1 / 8) + 7 / 8 * math.log2(7 / 8))
    weight.ravel()[:72:2], weight.ravel()[1:72:2] = 1.5, 0  # no whole kernels
    found = laid_out(weight.shape, np.arange(8), np.arange(4), weight, Floats())
    size = node_size(Node("conv", "conv", codes=found), 4)
    assert found.layout.name == "irregular"
    assert (size.parameters, size.entropy_bits) == (36, pytest.approx(36 * 32 + places))
    full = laid_out(weight.shape, np.arange(8), np.arange(4), np.ones_like(weight), Floats())
    assert node_size(Node("conv", "conv", codes=full), 4).entropy_bits == 288 * 32


def test_dropped_layers_count_as_original():
    packed = one_conv(np.ones((8, 4, 3, 3)))
    packed.meta["original"]["dropped"] = [["gone", [10, 5, 3, 3], True], ["float", [3, 3, 1, 1], False]]
    assert total_size(packed, conv_only=True).original_parameters == 288 + 450 + 9


def test_gathered_layers_count_their_codes_and_one_bit_per_kernel():
    packed = regular()
    size = sizes(packed)["3"]
    assert size.parameters == size.nonzeros == 9 * 5 * 9
    assert size.theoretical_bits == 9 * 5 * 9 + 9 * 8 + 32
    assert packed.layers()["3"].codes.layout.columns.shape == (9, 5)


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


def test_files_stay_near_their_entropy_and_headers_stay_small():
    packed = quantised("residual", 0)
    data = dumps(packed)
    header = loads(data).bytes_on_disk["header"]
    assert header < 500
    assert len(data) - header < 1.1 * total_size(packed).entropy_bound_bytes
