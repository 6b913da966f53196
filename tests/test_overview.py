"""The pictures of RESULTS.md, what is kept to draw from, and the commands that write them."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from sparsign.papers.ledger import load_ledger
from sparsign.papers.published import Published, load_published
from sparsign.papers.targets import load_targets
from sparsign.reports import overview
from sparsign.reports.__main__ import main
from sparsign.reports.kept import keep, kept
from tests.made_report import METRICS, a_report
from tests.test_papers import ROOT


def test_published_marks_name_their_source_and_every_one_is_drawn():
    marks = load_published()
    assert {mark.dataset for mark in marks} == set(overview.DATASETS)
    picture = overview.accuracy_against_bytes(load_ledger(), marks)
    ElementTree.fromstring(picture)
    for mark in marks:
        assert f"{mark.method} ({mark.year}), {mark.network}" in picture
    for row in load_ledger():
        assert f">{row['compressor']}<" in picture
    with pytest.raises(ValueError, match="wrong certainty"):
        Published("EPR", 2020, "VGG-16", "cifar10", 91.2, 128000, "rumour")


def test_the_papers_points_stand_beside_ours():
    picture = overview.top1_against_pruned(load_ledger(), list(load_targets()[1].values()))
    assert ">stq_a, resnet18<" in picture and ">stq_a, resnet18 (paper)<" in picture
    assert overview.top1_against_pruned([], []) is None


def test_structure_stands_against_single_weights_at_one_kind_of_weights():
    alike = {"compressor": "admm", "dataset": "mnist", "weights": "a few levels", "milliseconds": 0.1}
    irregular = {**alike, "pfr_unit": "weight", "top1": 99.0, "packed_bytes": 2000, "irregular_bytes": 3000}
    structured = {**alike, "pfr_unit": "column", "top1": 98.5, "packed_bytes": 2500, "structured_bytes": 2600}
    picture = overview.structured_against_irregular([irregular, structured])
    assert ">irregular<" in picture and ">structured<" in picture and ">99 %<" in picture
    assert overview.structured_against_irregular([irregular, {**structured, "weights": "binary"}]) is None


def test_kept_metrics_come_back_with_four_digits(tmp_path):
    rows = [{"stage": "prune", "epoch": 0, "loss": 0.123456789, "gap": [1.00001, 2], "note": "x"}]
    keep(rows, tmp_path / "metrics" / "a.jsonl.xz")
    assert kept(tmp_path / "metrics" / "a.jsonl.xz") == [{**rows[0], "loss": 0.1235, "gap": [1.0, 2]}]
    (tmp_path / "b.xz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b\.xz: not kept metrics"):
        kept(tmp_path / "b.xz")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with an empty ledger; a finished run beside it."""
    root, run = tmp_path / "checkout", tmp_path / "run"
    (root / "papers").mkdir(parents=True)
    run.mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "sparsign"\n')
    (root / "papers" / "ledger.jsonl").write_text("")
    (run / "report.json").write_text(json.dumps(a_report()))
    (run / "timing.json").write_text('{"pretrain": 3}')
    (run / "config.yaml").write_text("schedule: {name: smoke}")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    monkeypatch.chdir(root)
    return root


def test_recording_a_run_keeps_its_row_its_metrics_and_the_page(checkout, capsys):
    main(["record", "../run", "--command", "python train.py", "--name", "mine", "--note", "short"])
    (row,) = load_ledger(checkout / "papers" / "ledger.jsonl")
    assert (row["run"], row["top1"], row["note"], row["val_top1"]) == ("mine", 90.0, "short", 90.0)
    assert row["stages"]["prune-2"]["val_top1"] == 0.1
    assert kept(checkout / "papers" / "metrics" / "mine.jsonl.xz") == METRICS
    assert "| mine |" in (checkout / "RESULTS.md").read_text()


@pytest.mark.parametrize("command", [["figures"], ["record", "run", "--command", "x"]])
def test_outside_a_checkout_one_line_says_what_is_needed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"--to is needed: .* is no checkout of sparsign"):
        main(command)
    assert list(tmp_path.iterdir()) == []


def test_figures_go_where_asked(tmp_path, capsys):
    main(["figures", "--to", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy_bytes.svg",
        "structured_irregular.svg",
        "top1_pruned.svg",
    ]
    for name in overview_pictures():
        assert (ROOT / name).is_file(), "RESULTS.md shows it"


def overview_pictures():
    return [part.split(")")[0] for part in (ROOT / "RESULTS.md").read_text().split("](")[1:] if "plots" in part]
