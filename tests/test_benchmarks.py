"""The arithmetic of the benchmarks: percentiles, times per layer, shares, ratios, demands. Nothing is timed here."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from benchmarks import kernels, network, rivals, sparsity, timing, training
from benchmarks.options import key_values, numbers, positive, shapes, shares
from sparsign.evaluation import libraries
from sparsign.evaluation.latency import Candidate
from sparsign.kernels.engine import native

needs_engine = pytest.mark.skipif(native() is None, reason="the compiled engine was not built")


def test_a_layer_is_the_difference_of_two_networks_by_the_number_of_its_copies():
    assert timing.p20(range(101)) == 20
    assert timing.p20([3.0]) == 3
    assert timing.per_layer([9.0] * 5, [1.0] * 5, 9) == 1
    assert timing.per_layer(np.arange(101), np.zeros(5), 5) == 5  # 20th percentiles, not means
    assert timing.gmacs(64, 32, 10, 1e-3) == pytest.approx(9 * 64 * 32 * 100 / 1e-3 / 1e9)


@needs_engine
@pytest.mark.parametrize("in_a_row", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_the_network_that_is_timed_computes_its_layers(dtype, in_a_row):
    rng = np.random.default_rng(0)
    weights = [rng.choice([-1, 1], (6, 6, 3, 3)).astype(dtype) for _ in range(2)]
    images = torch.from_numpy(rng.integers(-9, 10, (1, 6, 5, 5)).astype(np.float32))

    def signs(x):
        return torch.where(x >= 0, 1.0, -1.0) if dtype == np.int8 else x

    exact = signs(images)
    if in_a_row:
        exact = signs(F.conv2d(exact, torch.from_numpy(weights[0]).float(), padding=1))
    exact = F.conv2d(exact, torch.from_numpy(weights[1]).float(), padding=1).mean((2, 3))
    torch.testing.assert_close(timing.layers(5, weights, in_a_row)(images), exact)


def test_prepacked_is_the_convolution():
    weight, images = torch.randn(3, 4, 3, 3), torch.randn(1, 4, 6, 6)
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(timing.prepacked(weight, 6)(last), F.conv2d(images, weight, padding=1))


def test_kernels_row_and_shares_of_the_peaks():
    def samples(us):
        return [(kernels.DEPTH + 1) * us * 1e-6] * 3, [2 * us * 1e-6] * 3  # what is not the layers takes `us`

    kinds = {"signs": 100, "binary": 500, "ternary": 800, "sparse": 250}
    times = kinds | {"torch fp32": 2000, "OpenVINO fp32": 1000, "ONNX Runtime int8": 400}
    row = kernels.row("net", 64, 10, {name: samples(us) for name, us in times.items()})
    assert row["us"] == pytest.approx(times)
    assert (row["fp32"], row["int8"]) == ("OpenVINO fp32", "ONNX Runtime int8")
    assert row["over_fp32"] == pytest.approx({kind: 1000 / us for kind, us in kinds.items()})
    assert row["over_int8"]["signs"] == pytest.approx(4)
    peaks = kernels.Peaks()
    peaks.signs, peaks.floats = [row["gmacs"]["signs"], 2 * row["gmacs"]["signs"]], [2.0, 2 * row["gmacs"]["binary"]]
    assert kernels.share(row, "signs", peaks) == kernels.share(row, "binary", peaks) == 0.5
    assert kernels.share(row, "ternary", peaks) == row["gmacs"]["ternary"] / 2  # by multiply-adds: no such look-ups
    assert kernels.share(row, "sparse", peaks) is kernels.share(row, "ONNX Runtime int8", peaks) is None


def test_weights_of_a_kind_have_its_levels_and_zeros():
    assert np.array_equal(np.unique(kernels.weight("signs", 32)), [-1, 1])
    for kind in ("binary", "ternary", "sparse"):
        weight = kernels.weight(kind, 32).reshape(32, -1)
        assert np.mean(weight == 0) == pytest.approx(kernels.ZEROS[kind], abs=0.02)
        assert all(len(np.unique(np.abs(row[row != 0]))) == 1 for row in weight)


@needs_engine
def test_the_peak_is_the_best_loop_so_far(monkeypatch):
    rates = iter([5.0, 7.0, 6.0, 9.0, 3.0, 8.0, 1.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr(kernels, "_rate", lambda bits, form: next(rates))
    monkeypatch.setattr(kernels, "native", lambda: type("N", (), {"peak": lambda *a: float(a[2] < 2 + a[1])}))
    peaks = kernels.Peaks()
    peaks.measure(2)
    assert (peaks.signs, peaks.floats) == ([9.0, 7.0, 8.0], [2.0, 4.0])


@needs_engine
@pytest.mark.parametrize("isa", native().isas() if native() else [])
def test_every_form_of_peak_counts_its_products(isa):
    for bits in (True, False):
        forms = [native().peak(isa, bits, form, 1000) for form in range(8)]
        assert forms[0] > 0
        assert forms[-1] == 0
        doubled = [native().peak(isa, bits, form, 2000) for form in range(8)]
        assert all(1.5 < d / m < 2.5 for m, d in zip(forms, doubled, strict=True) if m)


@pytest.mark.parametrize(
    ("kind", "shape"), [("filters", (16, 64)), ("both", (16, 16)), ("columns", (64, 16)), ("cut", (32, 32))]
)
def test_what_each_kind_of_pruning_leaves(kind, shape):
    make = sparsity.binary_weight if kind in sparsity.BINARY else sparsity.float_weight
    weight = make(kind, 64, 0.75)
    assert weight.shape == (*shape, 3, 3)
    assert np.count_nonzero(weight) == weight.size
    assert sparsity.theory(weight, 64) == {"both": 16}.get(kind, 4)


def test_zeros_in_place_are_as_many_as_asked_for():
    for kind in ("groups", "irregular"):
        weight = sparsity.float_weight(kind, 64, 0.75)
        assert weight.shape == (64, 64, 3, 3)
        assert sparsity.theory(weight, 64) == pytest.approx(4, rel=0.1)
    groups = sparsity.float_weight("groups", 64, 0.75).reshape(8, 8, -1) != 0
    assert (groups.all(1) | ~groups.any(1)).all()


def test_sparsitys_ratios_and_the_demand():
    whole = {"kind": "filters", "engine_us": 90.0, "kept": 1.0}
    half = {"kind": "filters", "engine_us": 50.0, "kept": 0.5}
    assert sparsity.ratios(whole, whole) == {"gain": 1}  # nothing is asked of what was not pruned
    assert sparsity.ratios(half, whole) == {"gain": 1.8, "demand": 1.8}
    dense = {"kind": "cut", "engine_us": 30.0, "kept": 0.5, "torch dense": 90.0, "ONNX Runtime": 60.0, "torch CSR": 1.0}
    assert sparsity.ratios(dense, dense | {"engine_us": 60.0}) == {"gain": 2, "over_fp32": 2}
    rows = [r | sparsity.ratios(r, whole) for r in (whole, half, half | {"engine_us": 60.0})]
    assert sparsity.held(rows, "filters") == (1, 2)
    assert sparsity.held(rows, "both") == (0, 0)


def test_network_rows_are_ratios_to_the_packed_engine():
    timed = [Candidate("sparsign", "avx2", None), Candidate("rival", "AVX2", None)]
    mine, rival = network.rows_of(timed, [[1e-3] * 3, [2e-3, 4e-3, 9e-3]], 64, 1)
    assert (mine["p20_ms"], mine["times_faster"], mine["batch"], mine["samples"]) == (1, 1, 64, 3)
    assert (rival["p20_ms"], rival["median_ms"], rival["times_faster"]) == pytest.approx((2.8, 4, 2.8))


def test_trainings_cells_are_medians_of_neighbours():
    assert training.cells([(10, 15), (10, 30), (20, 40)]) == ["10.0", "30.0", "2.000"]
    with pytest.raises(ValueError, match="compare=torch: expected plain or kernels"):
        training.compares_kernels(OmegaConf.create({"compare": "torch"}))


def test_rivals_are_left_out_by_a_word_of_their_name():
    assert network.wanted("uncut torch fp32", []) and network.wanted("uncut torch fp32", ["bf16", "cut", "cut torch"])
    assert not network.wanted("cut torch.compile bf16", ["int8", "bf16"])
    assert not network.wanted("cut OpenVINO int8", ["OpenVINO int8"]) and not network.wanted("cut torch", ["cut"])


def test_litert_reads_the_nearest_int8_within_its_range():
    values = np.array([-100, -0.26, 0.0, 0.24, 0.26, 100], np.float32)
    np.testing.assert_array_equal(rivals._to_int8(values, 0.5, 3), [-128, 2, 3, 3, 4, 127])


def test_openvino_is_refused_where_it_computes_in_another_precision(monkeypatch):
    class Compiled:
        def get_property(self, name):
            return self

        def to_string(self):
            return "f32"

        def create_infer_request(self):
            return type("Request", (), {"infer": lambda self, inputs: [2 * inputs[0]]})()

    given = {}
    compile_model = lambda model, device, settings: given.update(settings) or Compiled()  # noqa: E731
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(compile_model=compile_model))
    assert torch.equal(libraries.openvino_call(None, 3, "f32")(torch.ones(2)), torch.full((2,), 2.0))
    assert given["INFERENCE_NUM_THREADS"] == 3
    with pytest.raises(ValueError, match="asked for bf16, this CPU computes in f32"):
        libraries.openvino_call(None, 1, "bf16")


def test_openvinos_int8_is_made_once_for_a_batch_and_a_number_of_threads(monkeypatch):
    made = []

    def make(net, images, threads):
        made.append((len(images), threads))
        return net

    monkeypatch.setattr(libraries, "openvino_int8", make)
    int8, threads = libraries.Int8(torch.nn.Identity()), torch.get_num_threads()
    for batch in (1, 2, 1, 2):
        assert len(int8(torch.zeros(batch, 3))) == batch
    assert made == [(1, threads), (2, threads)]


@pytest.mark.parametrize(
    "argument, said", [("second=3", "second=3: expected .*seconds, out"), ("out", "out: expected")]
)
def test_a_benchmark_names_the_argument_that_it_does_not_know(argument, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "seconds=3", argument])
    with pytest.raises(SystemExit, match=said):
        key_values("What it does.", {"seconds": "60", "out": "."})


def test_a_benchmark_tells_what_it_does_and_its_defaults(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit) as ended:
        key_values("What it does.", {"seconds": "60", "out": ""})
    assert not ended.value.code and "What it does." in (text := capsys.readouterr().out) and "seconds=60" in text
    monkeypatch.setattr("sys.argv", ["benchmark", "seconds=3"])
    assert key_values("What it does.", {"seconds": "60", "out": ""}) == {"seconds": "3", "out": ""}


@pytest.mark.parametrize(
    "read, value, found, wrong",
    [
        (positive, "1.5", 1.5, ["x", "0", "-1", "nan", "inf"]),
        (numbers, "1,8", [1, 8], ["", "0", "1.5", "1,,2", "-1"]),
        (shapes, "64x32,3x7", [(64, 32), (3, 7)], ["", "64", "64x", "64x0", "ax3", "64x3x3"]),
        (shares, "0,.25", [0.0, 0.25], ["", "1", "-.1", "x", "nan"]),
    ],
)
def test_a_benchmark_names_the_value_that_it_cannot_read(read, value, found, wrong):
    assert read({"option": value}, "option") == found
    for text in wrong:
        with pytest.raises(SystemExit, match=f"^option={re.escape(text)}: expected "):
            read({"option": text}, "option")
