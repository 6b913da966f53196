"""The page that compares runs: what stands on it is what the reports and the ledger say."""

import json
import re
from pathlib import Path

import pytest

from sparsign.papers.ledger import load_ledger
from sparsign.reports.__main__ import main
from sparsign.reports.compare import collect, page, run_folders

LEDGER = Path(__file__).parent.parent / "papers" / "ledger.jsonl"


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_every_row_of_the_ledger_and_needs_nothing_from_elsewhere(tmp_path):
    main(["compare", str(LEDGER), "--to", str(tmp_path / "compare.html")])
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    runs = {run["run"]: run for run in data_of(text)["runs"]}
    rows = load_ledger(LEDGER)
    assert len(runs) == len(rows)
    by_bytes = sorted((row["packed_bytes"], row["top1"]) for row in rows)
    assert sorted((run["bytes"], run["top1"]) for run in runs.values()) == by_bytes
    assert not re.search(r"(src|href)=[\"']?http", text)


def test_seeds_of_one_setting_stand_together_and_different_options_apart():
    entries = {entry["run"]: entry for entry in collect([LEDGER], Path("compare.html"))}
    setting = {name: entry["setting"] for name, entry in entries.items()}
    assert setting["ptq_R0_seed0"] == setting["ptq_R0_seed1"] != setting["ptq_R1_l0.001"]


def test_a_name_cannot_end_the_script(tmp_path):
    entry = collect([LEDGER], tmp_path / "c.html")[0] | {"run": "</script><b>"}
    assert data_of(page([entry]))["runs"][0]["run"] == "</script><b>"


@pytest.mark.parametrize("source, message", [("nowhere", "no such folder or ledger"), (".", "no report.json")])
def test_sources_without_runs_are_one_clear_line(source, message, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        collect([tmp_path / source], tmp_path / "c.html")
    assert run_folders(tmp_path) == []


def test_bad_target_of_the_page_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SystemExit, match="expected the name of a file in an existing folder"):
        main(["compare", "nowhere", "--to", str(tmp_path / "no" / "c.html")])
