"""Structure, storage and theoretical speed-up, counted beside brute force and the papers' numbers."""

import numpy as np
import pytest
from tiny_nets import layer

from sparsign.evaluation.pruned_ratio import alive, kept_weights, pruned_ratio
from sparsign.evaluation.storage import layer_storage
from sparsign.evaluation.theory import theory
from sparsign.packing.spec import Node, PackedModel


def conv_node(codes, scale=1.0, name="conv", source="sign"):
    return Node("conv", name, (source,), codes=layer(codes.astype(int), scale))


def logits_of(nodes, input_shape):
    """A network that ends in the last of the nodes, flattened."""
    return PackedModel([*nodes, Node("flatten", "flatten", (nodes[-1].name,))], input_shape, "flatten")


def brute_force(mask, unit, group):
    """Share of units without any weight, by loops."""
    out, cin, kh, kw = mask.shape
    units = {
        "filter": [mask[k].any() for k in range(out)],
        "channel": [mask[:, c].any() for c in range(cin)],
        "kernel": [mask[k, c].any() for k in range(out) for c in range(cin)],
        "column": [mask[:, c, y, x].any() for c in range(cin) for y in range(kh) for x in range(kw)],
        "weight": mask.ravel().tolist(),
        "matrix": [
            mask[k].any() and mask[:, c, y, x].any()
            for k in range(out)
            for c in range(cin)
            for y in range(kh)
            for x in range(kw)
        ],
        "group": [mask[k, c : c + group].any() for k in range(out) for c in range(0, cin, group)],
    }[unit]
    return 1 - sum(bool(u) for u in units) / len(units)


@pytest.mark.parametrize("unit", ["filter", "channel", "kernel", "column", "weight", "group", "matrix"])
def test_pruned_ratio_equals_counting_by_loops(unit):
    rng = np.random.default_rng(0)
    mask = rng.random((6, 8, 3, 3)) < 0.1
    mask[2], mask[:, 5], mask[:, 1, 0, 0] = False, False, False
    node = conv_node(mask.astype(int))
    packed = PackedModel([Node("input", "input"), Node("sign", "sign", ("input",)), node], (8, 9, 9), "conv")
    assert pruned_ratio(packed, unit, 4) == pytest.approx(brute_force(mask, unit, 4))


def test_groups_take_the_largest_divisor():
    mask = np.zeros((1, 6, 1, 1), bool)
    mask[0, 5] = True
    assert alive(mask, "group", 4).tolist() == [False, True]


def test_cut_rows_and_wholly_dropped_layers_count_as_removed():
    codes = layer(np.ones((2, 3, 1, 1), int), full=(4, 3, 1, 1), rows=np.array([0, 2]))
    packed = PackedModel([Node("input", "input"), Node("conv", "conv", ("input",), codes=codes)], (3, 5, 5), "conv")
    assert pruned_ratio(packed, "filter") == 0.5
    packed.meta = {"original": {"parameters": 36, "dropped": [["gone", [6, 4, 1, 1], True]]}}
    assert pruned_ratio(packed, "filter") == pytest.approx(8 / 10)


def test_zeros_of_a_ternary_quantizer_are_not_pruned_weights():
    """Columns then filters: 4 of 6 rows, 9 of 72 columns are left, with zeros inside; counted by loops."""
    rng = np.random.default_rng(1)
    mask = np.zeros((6, 8, 3, 3), bool)
    mask[:4, 2] = rng.random((4, 3, 3)) < 0.5
    mask[:4, 2, 0, 0] = mask[0, 2] = True
    assert kept_weights(mask, "matrix") == kept_weights(mask, "filter") == kept_weights(mask, "column") == 4 * 9
    assert kept_weights(mask, "weight") == mask.sum() < 36
    assert kept_weights(mask, "kernel") == 4 * 9 and kept_weights(mask, "group", 4) == 4 * 4 * 9
    packed = logits_of([Node("input", "input"), conv_node(mask.astype(int), source="input")], (8, 9, 9))
    assert pruned_ratio(packed, "matrix") == pytest.approx(1 - 36 / mask.size)
    found = theory(packed, "matrix", pruned_ratio(packed, "matrix"))
    assert [found["s2"], found["s2_macs"]] == pytest.approx([mask.size / 36] * 2)
    assert theory(packed, "weight", 0.9)["s2"] == 1


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match="pfr_unit='filters'"):
        pruned_ratio(PackedModel([], (1, 1, 1), ""), "filters")


@pytest.mark.parametrize(("density", "width", "bits"), [(8, 4, 9.1), (12, 5, 9.6), (36, 7, 11.3), (100, 8, 13.0)])
def test_irregular_storage_costs_what_random_positions_at_four_bits_must(density, width, bits):
    """Expected entries nnz / (1 - (1 - d)^(2^r)), best r: 9.1 bits per weight at d = 1/8, and so on."""
    rng = np.random.default_rng(0)
    codes = rng.choice([*range(-8, 0), *range(1, 9)], (200, 1500)) * (rng.random((200, 1500)) < 1 / density)
    row = layer_storage(layer(codes))
    assert row["index_bits"] == width
    assert row["irregular_bits"] / row["nonzeros"] == pytest.approx(bits, rel=0.01)
    assert row["dense_bits"] == codes.size * 5  # sixteen levels and zero


def test_cut_binary_layer_is_cheapest_structured():
    codes = np.where(np.random.default_rng(0).random((32, 64)) < 0.5, -1, 1).astype(np.int8)
    row = layer_storage(layer(codes, full=(64, 64)))
    assert (row["dense_bits"], row["structured_bits"], row["best"]) == (4096, 2048, "structured")


@pytest.mark.parametrize(("scale", "pfr", "printed"), [(1, 0.19, 79), (0.5, 0.3, 83), (1, 0.28, 89), (1, 0.3, 91)])
def test_theory_reproduces_the_speedups_stq_prints(scale, pfr, printed):
    node = conv_node(np.ones((4, 3, 3, 3)), scale)
    packed = logits_of([Node("input", "input"), Node("sign", "sign", ("input",)), node], (3, 8, 8))
    assert round(theory(packed, "filter", pfr)["layer_speedup"]) == printed


def test_theory_has_no_bit_operations_without_sign():
    packed = logits_of([Node("input", "input"), conv_node(np.ones((4, 3, 3, 3)), source="input")], (3, 8, 8))
    assert theory(packed, "filter", 0.5)["s1"] == 1
    assert theory(packed, "filter", 1.0)["layer_speedup"] is None


def test_the_networks_bound_counts_float_layers_and_large_ones_for_what_they_are():
    """A float stem (3 x 4 weights, 8 x 8 places) before a binary conv on signs that lost half of its 8 filters (4 x 4):
    layer-wise 64 x 2 by filters; the network's is by multiply-accumulates, the stem's undivided."""
    stem = Node("conv", "stem", ("input",), codes=layer(np.ones((4, 3, 1, 1), np.float32)))
    left = layer(np.ones((4, 4, 2, 2), int), 1.0, full=(8, 4, 2, 2))
    conv = Node("conv", "conv", ("sign",), {"stride": (2, 2)}, codes=left)
    packed = logits_of([Node("input", "input"), stem, Node("sign", "sign", ("stem",)), conv], (3, 8, 8))
    found = theory(packed, "filter", 0.5)
    before = 64 * 12 + 16 * 8 * 16
    assert (found["macs"], found["kept_macs"]) == (before, 64 * 12 + 16 * 4 * 16)
    assert (found["layer_speedup"], found["layer_speedup_macs"]) == (128, 128)
    assert found["network_speedup"] == pytest.approx(before / (64 * 12 + 16 * 4 * 16 / 64))
