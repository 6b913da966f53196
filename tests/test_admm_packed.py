"""What packing makes of ADMM's zeros: rows and columns that are gone, and indices where single weights are stored."""

import numpy as np
import pytest
import torch
from plain_loop import run
from tiny_nets import layer as packed_layer
from torch import nn

from sparsign.compressors.admm import ADMM
from sparsign.compressors.parts.transforms import encode_layer
from sparsign.evaluation.storage import layer_storage
from sparsign.packing.file import read, write
from sparsign.packing.trace import to_packed


@pytest.mark.parametrize("structure", ["filter", "channel", "column_then_filter"])
def test_zero_rows_and_columns_are_physically_gone(structure, tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.ReLU()]
    options = {"rhos": [0.1], "quantize": "ternary", "ratios": {"0": 0.5}, "float_layers": ["first", "last"]}
    images, labels = torch.randn(32, 1, 6, 6), torch.arange(32) % 4
    model, _ = run(
        ADMM(structure=structure, pfr=0.75, **options), nn.Sequential(*layers, nn.Linear(12, 4)), images, labels
    )

    write(to_packed(model, encode_layer, (1, 6, 6)), tmp_path / "model.sparsign")
    packed = {node.name: node.codes for node in read(tmp_path / "model.sparsign").layers().values()}

    for name in ("2", "5"):
        weight = model.get_submodule(name).weight.detach()
        rows = weight.flatten(1).ne(0).any(dim=1)
        columns = weight.ne(0).transpose(0, 1).flatten(1).any(dim=1)
        assert packed[name].full_shape == tuple(weight.shape)
        assert packed[name].codes.shape == (int(rows.sum()), int(columns.sum()), *weight.shape[2:])
        assert packed[name].codes.size <= 0.5 * weight.numel()
        assert np.array_equal(packed[name].weight(), weight[rows][:, columns].numpy())
    assert len(packed["0"].rows) == len(packed["2"].cols) < 6
    assert len(packed["7"].cols) == len(packed["5"].rows)


def relative_entries(weights, r):
    """(run of zeros before it, value) of every stored entry, runs of at most 2^r - 1, one weight after the other."""
    entries, run = [], 0
    for value in weights:
        if value or run == 2**r - 1:  # a zero here is a filler
            entries.append((run, value))
            run = 0
        else:
            run += 1
    while entries and not entries[-1][1]:  # zeros at the end need no entry
        entries.pop()
    return entries


@pytest.mark.parametrize(("density", "levels"), [(0.3, 2), (0.03, 14), (0.004, 126)])
def test_index_bits_equal_an_encoding_that_can_be_read_back(density, levels):
    rng = np.random.default_rng(levels)
    half = levels // 2
    codes = rng.choice([*range(-half, 0), *range(1, half + 1)], (20, 10, 5, 5)) * (rng.random((20, 10, 5, 5)) < density)
    codes[3:12] = 0  # a long run
    codes.ravel()[:levels] = [*range(-half, 0), *range(1, half + 1)]
    value_bits = {2: 1, 14: 4, 126: 7}[levels]
    streams = {r: relative_entries(codes.ravel().tolist(), r) for r in range(2, 13)}
    for entries in streams.values():
        decoded = [value for run, value in entries for value in (*[0] * run, value)]
        assert decoded + [0] * (codes.size - len(decoded)) == codes.ravel().tolist()
    bits = {r: len(entries) * (value_bits + r) for r, entries in streams.items()}
    best = min(bits, key=bits.get)

    layer = packed_layer(codes.astype(int))
    row = layer_storage(layer)

    assert (row["index_bits"], row["irregular_bits"]) == (best, bits[best])
    assert row["fillers"] == sum(not value for _, value in streams[best])
    assert (
        row["csr_bits"] == np.count_nonzero(codes) * (value_bits + 8) + 21 * int(np.count_nonzero(codes)).bit_length()
    )


def test_empty_columns_of_the_im2col_matrix_cost_a_flag_bit_each():
    """Column pruning empties positions of a kernel, which the cut of rows and channels cannot take away."""
    codes = np.where(np.random.default_rng(0).random((16, 4, 3, 3)) < 0.5, -1, 1)
    codes[:, :, [0, 0, 2], [0, 2, 1]] = 0  # 6 of 9 columns of every channel are left
    layer = packed_layer(codes.astype(int), full=(32, 4, 3, 3))
    row = layer_storage(layer)
    assert row["dense_bits"] == 32 * 36 * 2 and row["structured_bits"] == 16 * 24 * 1 + 36
