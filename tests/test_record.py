"""What the ledger keeps of a finished run: numbers, rates and bytes, and no run that is not finished."""

import pytest

from sparsign.papers.ledger import validate
from sparsign.reports import files, record
from tests.made_report import a_report, layer


def test_recorded_rows_are_valid_and_in_per_cent():
    row = record.ledger_row(a_report(), {"pretrain": 10.0, "prune": 2.5}, "paper", "python train.py", {})
    validate({"run": "name", **row}, "row")
    assert (row["top1_before"], row["top1"], row["pfr"], row["wall_clock_s"]) == (95.0, 90.0, 25.0, 12.5)
    assert row["pruning_rate_after"] == round(2 * 216 / 162, 3) and row["weights_left_after"] == 162
    assert (row["speedup_theory"], row["speedup_network"]) == (85.33, 12.5)
    assert (row["weights"], row["form"], row["val_top1"], row["top5"]) == ("binary", "fbin", 90.0, 99.0)
    assert (row["milliseconds"], row["speedup"], row["engine"]) == (0.5, 8.0, "native, AVX2")
    assert "weights_left" not in row and "float_top1" not in row


def test_the_last_number_of_every_metric_is_kept_by_stage():
    lines = [
        {"stage": "prune", "epoch": 0, "cosine": 0.5, "gap": 0.3},
        {"stage": "prune", "epoch": 1, "cosine": 0.123456789, "gap": float("nan"), "by_layer": [1.0]},
        {"stage": "prune", "test_top1": 0.9, "cosine": 0.6, "note": "text"},
        {"stage": "prune-2", "epoch": 0, "cosine": 0.7},
    ]
    assert record.last_numbers(lines[:2]) == {"prune": {"epoch": 1, "cosine": 0.123457, "gap": 0.3}}
    assert record.last_numbers(lines) == {
        "prune": {"epoch": 1, "cosine": 0.6, "gap": 0.3, "test_top1": 0.9},
        "prune-2": {"epoch": 0, "cosine": 0.7},
    }


def test_rates_before_and_after_dead_paths_are_told_apart_and_zeros_of_a_quantizer_are_kept():
    found = a_report(unit="matrix")
    found["layers"] = [
        layer(kept=8, levels=3, nonzero_weights=54, kept_weights=108),
        layer("fc", "linear", kept=8, levels=3, nonzero_weights=18, kept_weights=36),
    ]
    rates = record.file_rates(found)
    assert rates == {"pruning_rate_after": 3.0, "conv_pruning_rate_after": 2.0, "weights_left_after": 144}
    stages = {"prune": {"weights_left": 999}, "finetune": {"weights_left": 216, "conv_weights_left": 144}}
    before = record.training_rates(found, stages)
    assert before == {"pruning_rate": 2.0, "conv_pruning_rate": 1.5, "weights_left": 216}
    assert record.training_rates(found, {"pretrain": {}}) == record.training_rates(found, {}) == {}


def test_single_weights_of_coded_layers_have_no_rate_after_training():
    sparse = a_report(unit="weight")
    sparse["layers"] = [layer(kept=8, levels=3, nonzero_weights=54)]
    assert record.file_rates(sparse) == {}
    sparse["layers"][0].update(levels=None, kept_weights=54)
    assert record.file_rates(sparse)["pruning_rate_after"] == 4.0


def test_data_rate_is_admm_nns():
    """LeNet-5's 430,500 weights: 1,910 times fewer bits are 7,213; here 2,576 nonzeros at 2.8 bits would be as many."""
    layers = [layer(levels=5, nonzero_weights=100), layer(levels=2, nonzero_weights=216, kept=8), layer(levels=None)]
    bits = 100 * 2 + 216 * 1 + 162 * 32
    assert record.data_rate(layers) == round(32 * 3 * 216 / bits, 2)


def test_storage_with_indices_is_summed_over_layers():
    row = {"structured_bits": 801, "irregular_bits": 1600, "csr_bits": 1500}
    layers = [layer(storage=row), layer(storage={**row, "csr_bits": 1700}), layer()]
    assert record.storage_bytes(layers) == {"structured_bytes": 201, "irregular_bytes": 388}
    assert record.storage_bytes([layer()]) == {}


def test_a_network_that_cannot_be_built_here_has_a_time_but_no_speed_up():
    report = a_report()
    assert record.speed(report) == {"milliseconds": 0.5, "speedup": 8.0, "engine": "native, AVX2"}
    for row in report["speed"]:
        row["ratio_to_torch_fp32"] = None
    assert record.speed(report) == {"milliseconds": 0.5, "engine": "native, AVX2"}


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such report"):
        record.read_run(tmp_path)
    files.write_report(a_report(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"timing\.json"):
        record.read_run(tmp_path)
    (tmp_path / "timing.json").write_text('{"pretrain": 3}')
    (tmp_path / "config.yaml").write_text("schedule: {name: smoke}")
    assert record.read_run(tmp_path)[1:] == ({"pretrain": 3.0}, "smoke")
    (tmp_path / "timing.json").write_text("[1]")
    with pytest.raises(ValueError, match="malformed"):
        record.read_run(tmp_path)
