"""What people look at: the terminal's table, report.html, the sweep's page, evaluate.py and the recording of runs."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from sparsign import evaluate
from sparsign.configs.evaluation import register
from sparsign.evaluation import report
from sparsign.evaluation.storage import storage_table
from sparsign.packing.file import write
from sparsign.packing.spec import Node, PackedModel
from sparsign.papers.ledger import validate
from sparsign.reports import curves, diff, files, html, record, sweep, table


def layer(name="conv1", op="conv", kept=6, **change):
    return {
        "name": name,
        "op": op,
        "full_shape": [8, 3, 3, 3],
        "shape": [kept, 3, 3, 3],
        "levels": 2,
        "scales": 0,
        "parameters": kept * 27,
        "nonzeros": kept * 27,
        "nonzero_weights": kept * 27,
        "kept_weights": kept * 27,
        "layout": "dense",
        "values": "scale",
        "macs": kept * 27,
        "float_bytes": 864,
        "packed_bytes": 21,
        "order0_bytes": 21,
        "storage": None,
        **change,
    }


def speed(engine, milliseconds, ratio, batch=1):
    row = {"engine": engine, "isa": "AVX2", "threads": 1, "batch": batch, "milliseconds": milliseconds}
    return {**row, "ratio_to_torch_fp32": ratio, "samples": 9}


def a_report(top1=0.9, packed_bytes=1000, unit="filter", compressor="stq_a", val_top1=None, **accuracy):
    counts = {"parameters": 162, "nonzeros": 162, "original_parameters": 216, "theoretical_bits": 162}
    counts |= {"float_bytes": 864, "packed_bytes": packed_bytes, "order0_bytes": 21}
    counts["compression_ratio"] = 864 / packed_bytes
    return {
        "version": 2,
        "date": "2025-03-01T10:00:00+00:00",
        "packed": "runs/a/model.sparsign",
        "model": "nin",
        "form": "fbin",
        "dataset": "cifar10",
        "compressor": compressor,
        "seed": 0,
        "recipe": [{"name": "pretrain", "epochs": 1}],
        "code": [{"commit": "a" * 40, "dirty": True, "torch": "2.14.0"}],
        "accuracy": {
            "top1": top1,
            "top5": 0.99,
            "val_top1": top1 if val_top1 is None else val_top1,
            "before_top1": 0.95,
            "float_top1": None,
            "trained_top1": top1,
            "images": 10000,
            **accuracy,
        },
        "structure": {
            "pfr": 0.25,
            "pfr_asked": None,
            "pfr_unit": unit,
            **{f"{u}_pfr": 0.25 for u in ("filter", "kernel", "weight")},
        },
        "layers": [layer(), layer("conv2", kept=0, packed_bytes=0, levels=None)],
        "size": {**counts, "conv": counts, "codes": {"packed": 40, "gzip": 30, "xz": 60}, "leftovers": "fp32"},
        "speed": [speed("torch fp32", 4.0, 1.0), speed("torch bf16", 2.0, 2.0), speed("native", 0.5, 8.0)],
        "reload": {
            "identical_predictions": True,
            "epsilon": 1e-3,
            "bit_equal": True,
            "max_logit_error": 0.0,
            "compared_images": 10000,
        },
        "theory": {
            "label": "theoretical",
            "s1": 64,
            "s1_reason": "binary",
            "s2": 4 / 3,
            "layer_speedup": 256 / 3,
            "s2_macs": 1.25,
            "layer_speedup_macs": 80.0,
            "macs": 1000,
            "kept_macs": 800,
            "network_speedup": 12.5,
            "source": "STQ-Nets",
        },
        "environment": {"cpu": "a CPU", "isa": "AVX2", "torch": "2", "threads": 1},
    }


METRICS = [
    {"stage": stage, "epoch": e, "train_loss": 1 / (e + 1), "val_top1": 0.1 * e, "hist": [e, 1, 2], "flat": 3.0}
    for stage in ("pretrain", "prune", "prune-2")
    for e in range(2)
]


def text_of(renderable):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_terminal_table_holds_what_matters():
    text = text_of(table.summary(a_report(), "out"))
    for part in (
        "95.00 % (binary weights and inputs, unpruned) → 90.00 %",
        "162 of 216",
        "1.0 kB (1,000 bytes)",
        "identical predictions on 10,000 images",
    ):
        assert part in text
    assert "native: 0.50 ms, 8.00 times torch fp32" in text
    assert "out/report.html" in text
    for part in ("85.3 = 64 × 1.33 (by units)", "80.0 = 64 × 1.25 (by multiply-accumulates)", "12.5 (network"):
        assert part in text
    assert "97.00 %" in text_of(table.summary(a_report(float_top1=0.97), "out")).split("float network")[1]
    broken = a_report()
    broken["reload"]["identical_predictions"] = False
    assert "DIFFERENT" in text_of(table.summary(broken, "out"))


def test_sizes_are_in_powers_of_ten():
    assert [table.size(n) for n in (999, 1500, 2_340_000)] == [
        "999 bytes",
        "1.5 kB (1,500 bytes)",
        "2.3 MB (2,340,000 bytes)",
    ]


def test_storage_table_is_in_bytes_rounded_up():
    row = {"dense_bits": 801, "structured_bits": 400, "irregular_bits": 160, "csr_bits": 170, "fillers": 3}
    cells = text_of(storage_table({"fc1": {**row, "best": "irregular"}})).split("fc1")[1].split()
    assert cells[:6] == ["101", "50", "20", "22", "3", "irregular"]


def pictures(page):
    return [ElementTree.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in page.split("<svg")[1:]]


def test_page_is_self_contained_and_its_pictures_are_well_formed():
    page = html.render(a_report(), METRICS)
    assert "<td>pretrain</td><td>epochs 1</td>" in page and f"commit {'a' * 40}, dirty True, torch 2.14.0" in page
    assert len(pictures(page)) == 6  # sizes, kept filters, speed, beside theory, curves, heat map
    assert "<script" not in page and "<link" not in page and "@import" not in page
    assert 'src="http' not in page and 'href="http' not in page and "url(http" not in page
    for name in ("conv1", "this file, AVX2", "train_loss", "hist"):
        assert f">{name}<" in page
    assert ">flat<" not in page  # constant everywhere: no curve


def test_speed_names_the_engine_its_rivals_and_the_theory():
    report = a_report()
    report["speed"] = [speed("torch fp32", 4.0, 1.0), speed("torch bf16", 90.0, 0.04), speed("native", 0.5, 8.0)]
    report["speed"].insert(2, speed("OpenVINO int8", 1.0, 4.0))
    page = html.render(report)
    for text in ("1 ms · the engine is 2.0× as fast", "4 ms · the engine is 8.0× as fast", "90 ms", "0.5 ms"):
        assert f">{text}" in page
    for text in ("measured over torch fp32, batch 1", "measured over OpenVINO int8, batch 1", "theory, whole network"):
        assert f">{text}<" in page
    assert "measured over torch bf16" not in page
    assert table.fastest(report)["engine"] == "native"  # no rival is ever taken for ours


def test_page_of_a_file_alone_has_no_rivals():
    report = a_report()
    report["speed"] = [speed("native", 0.5, None)]
    page = html.render(report)
    assert ">0.5 ms<" in page and "as fast; dashed" not in page


def test_page_without_speed_and_training_has_just_the_layers():
    plain = a_report()
    plain["speed"] = []
    assert len(pictures(html.render(plain))) == 2


def test_names_from_a_file_cannot_become_markup_or_formulas():
    hostile = a_report(compressor="<script>alert(1)</script>")
    hostile["layers"][0]["name"] = "<b>$\\frac{1}$&"
    page = html.render(hostile, [{**row, "<i>$x": row["epoch"]} for row in METRICS])
    assert "<script" not in page and "<b>$" not in page and "<i>" not in page
    assert len(pictures(page)) == 6


def test_curves_follow_the_stages_and_survive_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row) + "\n" for row in METRICS]
    path.write_text("".join(lines) + lines[0][:20])
    rows = curves.read_metrics(path)
    assert rows == METRICS
    assert curves.spans(rows) == [(0, 2, "pretrain"), (2, 4, "prune"), (4, 6, "prune-2")]
    assert curves.numbers(rows) == ["train_loss", "val_top1"]
    assert curves.lists(rows) == ["hist"]
    assert curves.read_metrics(tmp_path / "none.jsonl") == []


def test_rows_of_a_stages_end_belong_to_its_last_epoch():
    rows = [{"stage": "a", "epoch": 0}, {"stage": "a", "epoch": 1}, {"stage": "a"}, {"stage": "b"}, *METRICS[:2]]
    assert curves.positions(rows) == [0, 1, 1, 2, 3, 4]


def test_writing_replaces_and_reading_checks(tmp_path):
    files.write_report(a_report(), tmp_path)
    assert report.read_report(tmp_path / "report.json") == a_report()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    older = {k: v for k, v in a_report().items() if k not in ("recipe", "code")}
    (tmp_path / "report.json").write_text(json.dumps(older))
    assert report.read_report(tmp_path / "report.json") == a_report() | {"recipe": None, "code": None}
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match=r"report.json: report: missing key"):
        report.read_report(tmp_path / "report.json")


# -- sweeps ------------------------------------------------------------------------------------------------------------


def runs_of(points):
    return [sweep.Run(str(k), a_report(top1, packed)) for k, (top1, packed) in enumerate(points)]


def test_pareto_front_holds_what_nothing_beats():
    points = [(0.9, 100), (0.8, 50), (0.85, 120), (0.7, 60), (0.95, 400), (0.9, 90), (0.8, 50)]
    runs = runs_of(points)
    expected = {
        k for k, (t, b) in enumerate(points) if not any(u >= t and c <= b and (u, c) != (t, b) for u, c in points)
    }
    assert {int(run.label) for run in sweep.pareto(runs)} == expected == {1, 4, 5, 6}


def test_fronts_are_chosen_on_held_out_images_never_by_test_accuracy():
    better_on_test = sweep.Run("a", a_report(0.9, 100, val_top1=0.7))
    better_held_out = sweep.Run("b", a_report(0.8, 100, val_top1=0.8))
    assert sweep.pareto([better_on_test, better_held_out]) == [better_held_out]
    nothing_held_out = sweep.Run("c", a_report(0.99, 100))
    nothing_held_out.report["accuracy"]["val_top1"] = None
    assert sweep.pareto([better_held_out, nothing_held_out]) == []


def test_sweep_summary_finds_runs_up_to_three_folders_down(tmp_path):
    for name, top1, packed in (("pfr-0.2", 0.9, 400), ("a/b/seed-1", 0.85, 500), ("a/b/c/deep", 0.1, 900)):
        (tmp_path / name).mkdir(parents=True)
        files.write_report(a_report(top1, packed), tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    text = text_of(sweep.summarise(tmp_path))
    with (tmp_path / "summary.csv").open() as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    assert set(found) == {"pfr-0.2", "a/b/seed-1"}
    assert found["pfr-0.2"]["pareto"] == "True" and found["a/b/seed-1"]["pareto"] == "False"
    assert float(found["pfr-0.2"]["compression_ratio"]) == 864 / 400
    assert (tmp_path / "pareto.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(pictures((tmp_path / "sweep.html").read_text())) == 1
    assert "pfr-0.2" in text and "DIFFERS" not in text


def test_runs_of_a_sweep_are_named_by_what_differs():
    assert sweep.short(["a-1__compressor.pfr-0.2__z-3", "a-1__compressor.pfr-0.4__z-3"]) == ["pfr-0.2", "pfr-0.4"]
    assert sweep.short(["a-1__pfr-0.2-0123abcd", "a-1__pfr-0.4-4567cdef"]) == ["pfr-0.2", "pfr-0.4"]
    assert sweep.short(["a-1-0123abcd", "a-1-4567cdef"]) == ["a-1-0123abcd", "a-1-4567cdef"]
    assert sweep.short(["a-1__b-2", "a-1"]) == ["b-2", "a-1"] and sweep.short(["a-1"]) == ["a-1"]


def test_sweep_without_reports_writes_nothing(tmp_path):
    assert sweep.summarise(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# -- the ledger --------------------------------------------------------------------------------------------------------


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


# -- evaluate.py -------------------------------------------------------------------------------------------------------


def config(*overrides):
    register()
    with initialize_config_dir(str(Path(evaluate.__file__).parent / "configs"), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


@pytest.fixture
def run_folder(tmp_path):
    meta = {
        "model": {"name": "tiny"},
        "dataset": {"name": "digits", "mean": [0.172], "std": [0.32]},
        "compressor": {"name": "none", "pfr_unit": "filter"},
    }
    nodes = [Node("input", "input"), Node("avgpool", "pool", ("input",), {"kernel": (8, 8), "stride": (8, 8)})]
    nodes.append(Node("flatten", "flatten", ("pool",)))
    nodes.append(Node("select", "ten", ("flatten",), {}, {"index": np.arange(10)}))
    write(PackedModel(nodes, (1, 32, 32), "ten", meta), tmp_path / "model.sparsign")
    return tmp_path


def test_evaluate_writes_its_report_beside_the_file(run_folder):
    top1 = evaluate.main(config(f"run={run_folder}", "latency.seconds=0", "dataset.limit=50"))
    found = report.read_report(run_folder / "report.json")
    told = {key: value for key, value in found["accuracy"].items() if value is not None}
    assert told.keys() == {"top1", "top5", "images"} and (told["top1"], told["images"]) == (top1, 50)
    assert (run_folder / "report.html").is_file()


def test_evaluate_takes_a_file_from_anywhere_and_writes_where_asked(run_folder, tmp_path):
    output = tmp_path / "elsewhere"
    output.mkdir()
    path = (run_folder / "model.sparsign").rename(tmp_path / "stranger.bin")
    evaluate.main(config(f"packed={path}", f"output={output}", "latency.seconds=0"))
    assert report.read_report(output / "report.json")["packed"] == str(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "run=None, packed=None: expected exactly one of run"),
        (["run=a", "packed=b"], "run=a, packed=b: expected exactly one of run"),
        (["run=no/such/run"], "run=no/such/run: there is no file"),
        (["packed=no.sparsign"], "packed=no.sparsign: there is no file"),
        (["packed=pyproject.toml"], "pyproject.toml: not a packed model"),
        (["run=a", "latency.seconds=-1"], "latency.seconds=-1.0: expected a value in [0, inf)"),
        (["run=a", "dataset.limit=0"], "dataset.limit=0: expected"),
    ],
)
def test_evaluate_refuses_in_one_line(overrides, message, monkeypatch, capsys):
    monkeypatch.chdir(Path(evaluate.__file__).parent)
    with pytest.raises(SystemExit) as raised:
        evaluate.main(config(*overrides))
    assert raised.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_root_of_the_data_comes_from_the_run(tmp_path):
    assert evaluate.root_of_run(tmp_path) == "data"
    (tmp_path / "config.yaml").write_text("dataset: {root: /somewhere}")
    assert evaluate.root_of_run(tmp_path) == "/somewhere"


def test_two_runs_side_by_side_show_only_the_options_that_differ_and_what_came_out(tmp_path):
    for name, seed, top1, count in (("a", 0, 0.9, 1000), ("b", 1, 0.925, 1500)):
        (tmp_path / name).mkdir()
        files.write_report(a_report(top1, count), tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(f"seed: {seed}\nmodel: {{name: lenet5}}\n")
    ran, results, layers = (text_of(t) for t in diff.tables(tmp_path / "a", tmp_path / "b"))
    assert "seed" in ran and "lenet5" not in ran
    assert all(word in results for word in ("90.00", "92.50", "+2.50", "+500"))
    name, shape = a_report()["layers"][0]["name"], a_report()["layers"][0]["shape"]
    assert name in layers and "×".join(map(str, shape)) in layers
