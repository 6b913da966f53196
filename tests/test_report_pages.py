"""What people look at: the terminal's table, report.html, a sweep's page, two runs side by side."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from sparsign.evaluation import report
from sparsign.evaluation.storage import storage_table
from sparsign.reports import curves, diff, files, html, sweep, table
from tests.made_report import METRICS, a_report, speed


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
        "identical predictions on 10,000 images, logits equal to the bit",
    ):
        assert part in text
    assert "native: 0.50 ms, 8.00 times torch fp32" in text
    assert "out/report.html" in text
    for part in ("85.3 = 64 × 1.33 (by units)", "80.0 = 64 × 1.25 (by multiply-accumulates)", "12.5 (network"):
        assert part in text
    assert "97.00 %" in text_of(table.summary(a_report(float_top1=0.97), "out")).split("float network")[1]
    other = a_report()
    other["reload"] |= {"bit_equal": False, "max_logit_error": 2.5e-6, "compared_images": 9997}
    told = table.reload_line(other)[1]
    assert told.endswith("(3 too close to call), the first image's logits differ by at most 2.5e-06")
    other["reload"] |= {"bit_equal": None, "compared_images": 16}
    assert table.reload_line(other)[1] == "identical predictions on 16 images, the first of those it was proved on"
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
    path.write_bytes("".join(lines[:2]).encode() + b"\x9c\x00")
    assert curves.read_metrics(path) == METRICS[:2]


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


def test_networks_of_two_sizes_are_compared_by_bytes():
    large, small = a_report(0.91, 744_865), a_report(0.907, 30_099)
    large["size"]["compression_ratio"], small["size"]["compression_ratio"] = 59.1, 36.2
    runs = [sweep.Run("large", large), sweep.Run("small", small)]
    assert sweep.pareto(runs) == runs


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
