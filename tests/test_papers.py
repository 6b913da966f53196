"""The papers' numbers, the ledger and the tables made of them."""

import json
from pathlib import Path

import pytest

from sparsign.papers import tables
from sparsign.papers.acceptance import judge, load_claims
from sparsign.papers.ledger import append, load_ledger, validate
from sparsign.papers.targets import load_targets

PAPERS, TARGETS = load_targets()
ROW = {
    "run": "stq_a_nin",
    "date": "2025-03-01",
    "command": "python train.py compressor=stq_a model=nin dataset=cifar10",
    "seed": 0,
    "schedule": "paper",
    "hardware": "a CPU",
    "wall_clock_s": 12.5,
    "model": "nin",
    "dataset": "cifar10",
    "compressor": "stq_a",
    "test_images": 10000,
    "top1_before": 85.0,
    "top1": 82.05,
    "pfr": 31.5,
    "packed_bytes": 100_000,
    "ratio": 38.6,
    "target": "stq_cifar10_nin_stq_a_fbin",
}


def test_results_md_is_up_to_date():
    assert tables.RESULTS.read_text(encoding="utf-8") == tables.render(PAPERS, TARGETS, load_ledger(), load_claims())


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if "speedup_theory" in t.values], ids=lambda t: t.id)
def test_theoretical_speedups_of_stq_follow_from_s1_and_the_pruned_ratio(target):
    """64 without scale factors, 58 with them, printed without decimals; 2 with float inputs."""
    pfr = {**target.values, **target.inferred}.get("pfr", 0) / 100
    s1 = 2 if target.method in ("bwn", "ttq") else 58 if target.method in ("xnor", "subsidiary") else 64
    assert target.values["speedup_theory"] == pytest.approx(s1 / (1 - pfr), abs=1.0)


@pytest.mark.parametrize("paper", ["ptq", "wpc"])
def test_ratios_follow_from_the_other_numbers_of_their_row(paper):
    fp32_bytes = {"resnet18": 46e6, "resnet50": 99e6, "maskrcnn_resnet50_fpn": 170e6}
    for target in (t for t in TARGETS.values() if t.paper == paper):
        values = {**target.values, **target.inferred}
        if "ratio" in values:
            assert values["ratio"] == pytest.approx(fp32_bytes[target.model] / values["packed_bytes"], rel=0.01)
        if "wpc_rate" in values and "group_density" in values:
            in_group = 0.2168 if "0.2168" in target.note else 0.0
            rate = 16 / (values["group_density"] / 100 * (1 - in_group))
            assert values["wpc_rate"] == pytest.approx(rate, rel=0.002)
        if {"top1_before", "top1", "drop"} <= values.keys():
            assert values["drop"] == pytest.approx(values["top1_before"] - values["top1"], abs=0.05)


def test_weights_left_follow_from_lenets_size():
    lenets = [{**t.values, **t.inferred} for t in TARGETS.values() if t.model == "lenet5"]
    counted = [v for v in lenets if "weights_left" in v]
    assert len(counted) == 3
    for values in counted:
        assert values["weights_left"] == pytest.approx(430_500 / values["pruning_rate"], rel=0.001)


def test_accuracies_are_percentages_and_every_target_names_its_certainty():
    for target in TARGETS.values():
        assert target.numbers()
        for metric, value, certainty in target.numbers():
            assert certainty in ("paper", "lab code", "inferred")
            if metric.startswith("top") or metric in ("pfr", "group_density"):
                assert 0 < value < 100, (target.id, metric)


ENTRY = (
    "{{id: a, paper: p, table: t, row: r, model: m, dataset: d, form: float, method: x, certainty: {c}, values: {v}}}"
)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ENTRY.format(c="rumour", v="{top1: 1}")], "certainty=rumour"),
        ([ENTRY.format(c="paper", v="{top2: 1}")], "metric top2"),
        ([ENTRY.format(c="paper", v="{top1: 1}")] * 2, "used twice"),
        ([ENTRY.format(c="paper", v="{top1: 1}").replace("paper: p", "paper: q")], "paper=q"),
        (["{id: a}"], "target a: "),
    ],
)
def test_bad_targets_are_refused_in_one_line(tmp_path, entries, message):
    path = tmp_path / "targets.yaml"
    path.write_text("papers: {p: P}\ntargets:\n" + "".join(f"  - {e}\n" for e in entries))
    with pytest.raises(ValueError, match=message) as error:
        load_targets(path)
    assert "\n" not in str(error.value)


def test_ledger_keeps_what_is_appended(tmp_path):
    path = tmp_path / "ledger.jsonl"
    second = {
        **ROW,
        "run": "other",
        "stages": {"prune": {"pfr": 0.4}},
        "top1_before": None,
        "pfr": None,
        "target": None,
        "pruning_rate": 40.0,
        "note": "short",
    }
    append(ROW, path)
    append(second, path)
    assert load_ledger(path) == [ROW, second]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "seed=None"),
        ({"top1": "82"}, "top1='82'"),
        ({"top1": True}, "top1=True"),
        ({"top1": 182.0}, r"top1=182.0: expected per cent"),
        ({"pfr": float("nan")}, "pfr=nan"),
        ({"date": "yesterday"}, "date=yesterday"),
        ({"target": "stq_cifar10_nin"}, "target=stq_cifar10_nin"),
        ({"speedup": 3.0}, "unknown key speedup"),
    ],
)
def test_bad_ledger_rows_are_refused_and_leave_the_file_as_it_was(tmp_path, change, message):
    path = tmp_path / "ledger.jsonl"
    append(ROW, path)
    with pytest.raises(ValueError, match=message):
        append({**ROW, "run": "other", **change}, path)
    assert load_ledger(path) == [ROW]


def test_a_run_is_in_the_ledger_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(ROW, path)
    with pytest.raises(ValueError, match="run=stq_a_nin: used already"):
        append(ROW, path)
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    with pytest.raises(ValueError, match="line 2: run=stq_a_nin: used twice"):
        load_ledger(path)


def test_missing_keys_and_broken_lines_name_the_line(tmp_path):
    short = {k: v for k, v in ROW.items() if k != "ratio"}
    with pytest.raises(ValueError, match="missing ratio"):
        validate(short, "row")
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:-9] + "\n")
    with pytest.raises(ValueError, match="line 2"):
        load_ledger(path)


def line_of(text, needle):
    (line,) = [line for line in text.splitlines() if needle in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_set_measured_beside_reported():
    free = {**ROW, "run": "free", "model": "resnet20", "target": None}
    text = tables.render(PAPERS, TARGETS, [free, ROW])
    cells = line_of(text.split("## Runs behind")[0], "| NIN, STQ-A | cifar10, fbin |")
    assert cells[3] == "top-1 before 85.32 %; top-1 82.55 %; PFR 31 %"
    assert cells[5] == "top-1 before 85 %; top-1 82.05 %; PFR 31.5 %"
    assert cells[6] == "top-1 before -0.32 %; top-1 -0.5 %; PFR +0.5 %"
    assert cells[7] == "2"
    assert line_of(text, "| NIN, STQ-B | cifar10, fbin |")[5] == "not run yet"
    assert "resnet20" in text.split("## Runs without a target")[1]
    assert "resnet20" not in text.split("## Runs behind the tables")[1].split("## Runs without")[0]


def test_tables_mark_numbers_that_are_inferred():
    text = tables.render(PAPERS, TARGETS, [])
    assert "top-1 68.01 % (inferred)" in text
    assert "lab code" in line_of(text, "lambda 2e-3, not ternary, g = 16")


def test_wpc_rate_and_drop_are_derived_from_what_a_run_measured():
    row = {**ROW, "compressor": "wpc", "pfr": 23.8, "target": "wpc_imagenet_resnet18"}
    cells = line_of(tables.render(PAPERS, TARGETS, [row]).split("## Runs behind")[0], "about 21 times")
    assert "top-1 drop 2.95 points" in cells[5]
    assert "16 / (density (1 - s_min)) 21 x" in cells[5]


LEDGER = [
    {"run": "plain", "top1": 84.6, "stages": {"prune": {"cosine": 0.96}}},
    {"run": "refined", "top1": 84.3, "stages": {"prune": {"cosine": 0.96}, "quantize": {"cosine": 0.98}}},
]


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (
            "refined prune cosine < refined quantize cosine",
            "refined prune cosine 0.96 < refined quantize cosine 0.98: yes",
        ),
        ("refined top1 >= plain top1", "refined top1 84.3 >= plain top1 84.6: **no**"),
        ("plain,refined top1 < refined top1", "plain,refined top1 84.45 < refined top1 84.3: **no**"),
        ("plain prune cosine > 0.9", "plain prune cosine 0.96 > 0.9: yes"),
        ("plain prune cosine <= 1e-2", "plain prune cosine 0.96 <= 1e-2: **no**"),
    ],
)
def test_claims_are_judged_by_the_ledger(comparison, said):
    assert judge(comparison, LEDGER) == said


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        ("lost top1 > 1", "the ledger has no run lost"),
        ("plain quantize cosine > 1", "run plain has no such number"),
        ("plain top1", "expected one of"),
    ],
)
def test_a_claim_without_a_number_is_one_clear_line(comparison, message):
    with pytest.raises(ValueError, match=message) as error:
        judge(comparison, LEDGER)
    assert "\n" not in str(error.value)


def test_every_claim_names_tests_that_exist_or_runs_of_the_ledger():
    for claim in load_claims():
        assert claim.tests or claim.runs, claim.claim
        for test in claim.tests:
            file, name = test.split("::")
            assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), test


def test_every_run_of_the_ledger_has_its_curves():
    plots = {path.name.removesuffix("_curves.svg") for path in tables.RESULTS.parent.glob("papers/plots/*_curves.svg")}
    assert plots == {row["run"] for row in load_ledger()}
