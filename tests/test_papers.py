"""The papers' numbers, the ledger and the tables made of them."""

import json
import shlex
from pathlib import Path

import pytest

from sparsign.papers import results
from sparsign.papers.__main__ import main
from sparsign.papers.acceptance import judge, load_claims, shown
from sparsign.papers.checkout import output
from sparsign.papers.ledger import append, load_ledger, validate
from sparsign.papers.measured import by_setting, measured, reached
from sparsign.papers.targets import load_targets, number

ROOT = Path(__file__).parents[1]
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
    found = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert found == results.render(PAPERS, TARGETS, load_ledger(), load_claims())


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
            assert certainty in ("paper", "lab code", "secondary source", "inferred")
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
        ([ENTRY.format(c="paper", v="{top1: 1}").replace("form:", "weights: complex, form:")], "weights=complex"),
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
        ({"speed_up": 3.0}, "unknown key speed_up"),
        ({"weights": "ternary"}, "target stq_cifar10_nin_stq_a_fbin has binary weights"),
        ({"weights": "complex"}, "weights=complex"),
        ({"target_stage": "finetune"}, "target_stage=finetune"),
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


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\x9c\x00")
    with pytest.raises(ValueError, match=r"a\.jsonl: not a ledger: no UTF-8 text"):
        load_ledger(tmp_path / "a.jsonl")


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


def test_what_was_run_stands_first_beside_what_the_paper_has():
    free = {**ROW, "run": "free", "model": "resnet20", "target": None, "form": "fbin"}
    text = results.render(PAPERS, TARGETS, [free, ROW])
    first = text.split("## What a faithful")[0]
    cells = line_of(first.split("### Runs that")[0], "NIN, STQ-A, cifar10")
    assert cells[1] == "top-1 before 85.32 %; top-1 82.55 %; PFR 31 % (paper)"
    assert cells[2] == "top-1 before 85 %; top-1 82.05 %; PFR 31.5 %"
    assert cells[3] == "top-1 before -0.32 points; top-1 -0.5 points; PFR +0.5 points"
    assert cells[4] == "**yes**" and cells[6:8] == ["100,000", "38.6 x"]
    assert "1 of 1 reach the paper's numbers" in first
    cells = line_of(first.split("### Runs that")[1], "resnet20")
    assert cells[1] == "85 % (binary weights and inputs, unpruned) → **82.05 %**"
    assert "not run" not in first and "resnet20" not in first.split("### Runs that")[0]
    missing = text.split("## Rows that were not run")[1]
    assert "NIN, STQ-B" in missing and "NIN, STQ-A | cifar10, fbin" not in missing
    assert text.split("## Commands")[1].count(ROW["command"]) == 2


def test_seeds_of_one_setting_are_one_line_with_their_ends():
    seeds = [
        {**ROW, "run": f"s{k}", "seed": k, "command": f"{ROW['command']} seed={k}", "top1": 82 + k} for k in (0, 1)
    ]
    other = {**ROW, "run": "other", "command": ROW["command"] + " compressor.pfr=0.2"}
    assert by_setting([seeds[0], other, seeds[1]]) == [seeds, [other]]
    cells = line_of(results.render(PAPERS, TARGETS, [*seeds, other]).split("### Runs that")[0], "| s0, s1 |")
    assert "top-1 82.5 % (82 % to 83 %, 2 seeds)" in cells[2] and "top-1 -0.05 points" in cells[3]


def test_a_row_is_reached_when_accuracy_and_rate_are():
    def met(**values):
        return reached(TARGETS["stq_cifar10_nin_stq_a_fbin"], values)  # 82.55 % at PFR 31 %, 85.32 % before

    assert met(top1=82.05, pfr=31.0) and met(top1=90.0, pfr=30.7) and met(top1=82.55)
    assert not met(top1=82.04, pfr=31.0) and not met(top1=82.55, pfr=30.6)
    assert met(top1_before=70.0) is None and met(top1=83.0, top1_before=70.0)
    sizes = TARGETS["ptq_imagenet_resnet18"]  # 4 points lost, 939,000 bytes
    assert reached(sizes, {"drop": 4.5, "packed_bytes": 940_000.0})
    assert not reached(sizes, {"drop": 4.6}) and not reached(sizes, {"packed_bytes": 960_000.0})


def test_accuracies_differ_by_points_and_others_by_their_unit():
    assert [number(-0.5, metric, signed=True) for metric in ("top1", "pfr", "drop")] == ["-0.5 points"] * 3
    assert number(1.25, "ratio", signed=True) == "+1.25 x" and number(86.56, "top1") == "86.56 %"


def test_numbers_that_are_inferred_or_second_hand_say_so():
    text = results.render(PAPERS, TARGETS, [])
    assert "top-1 68.01 % (inferred)" in text
    assert "lab code" in line_of(text, "lambda 2e-3, not ternary, g = 16")
    assert line_of(text, "LeNet-5, structured, lossless")[4] == "secondary source"
    assert "top-1 before 60 % (secondary source)" in text
    assert sum("secondary source" in {c for _, _, c in t.numbers()} for t in TARGETS.values()) == 21


def test_wpc_rate_and_drop_are_derived_from_what_a_run_measured():
    row = {**ROW, "compressor": "wpc", "form": "float", "pfr": 23.8, "target": "wpc_imagenet_resnet18"}
    cells = line_of(results.render(PAPERS, TARGETS, [row]), "top-1 drop 2.95 points")
    assert "16 / (density (1 - s_min)) 21 x" in cells[2]


def test_a_ternary_file_is_compared_with_a_float_target_at_its_last_float_stage():
    stages = {"finetune": {"test_top1": 0.99, "weights_left": 400.0}, "finetune-2": {"test_top1": 0.98}}
    row = {**ROW, "weights": "ternary", "target": "admm_islped_lenet5_18", "target_stage": "finetune", "stages": stages}
    validate(row, "row")
    assert measured(row, "top1") == 99.0 and measured(row, "weights_left") == 400
    assert measured(row, "packed_bytes") is None and measured(row, "top1_before") == 85.0
    rated = {**row, "pruning_rate": 20.0, "stages": {**stages, "quantize": {"weights_left": 200.0}}}
    assert measured(rated, "pruning_rate") == 10 and measured(rated, "conv_pruning_rate") is None
    with pytest.raises(ValueError, match="has float weights"):
        validate({key: value for key, value in row.items() if key != "target_stage"}, "row")


def test_a_row_of_the_papers_without_accuracies_is_met_by_any_weights():
    row = {**ROW, "weights": "ternary", "compressor": "wpc", "pfr": 31.0, "pfr_unit": "group"}
    validate({**row, "target": "wpc_cifar10_resnet20_lasso"}, "row")
    assert reached(TARGETS["wpc_cifar10_resnet20_lasso"], {"group_density": 69.0, "wpc_rate": 23.2})
    assert not reached(TARGETS["wpc_cifar10_resnet20_lasso"], {"group_density": 71.0, "wpc_rate": 22.5})
    with pytest.raises(ValueError, match="has binary weights"):
        validate({**row, "target": "stq_cifar10_nin_stq_a_fbin"}, "row")


def a_run(name, command, top1, **stages):
    alike = {"model": "resnet20", "dataset": "cifar10", "form": "float", "target": None}
    return {"run": name, "command": command, "top1": top1, "stages": stages, **alike}


LEDGER = [
    a_run("plain", "train a", 84.6, prune={"cosine": 0.96}),
    a_run("refined", "train b", 84.3, prune={"cosine": 0.96}, quantize={"cosine": 0.98}),
    a_run("plain_1", "train a seed=1", 84.0),
    a_run("far", "train c", 80.0),
    {**a_run("lenet", "train d", 99.0), "model": "lenet5"},
    {**a_run("lenet_b", "train e", 98.9), "model": "lenet5"},
]


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (
            "refined prune cosine < refined quantize cosine",
            "refined prune cosine 0.96 < refined quantize cosine 0.98: yes (1 seed)",
        ),
        # 0.6 points between the two seeds of plain: no single seed shows less
        ("refined top1 >= plain top1", "refined top1 84.3 >= plain top1 84.6: within noise (1 seed; spread 0.6)"),
        (
            "refined top1 <= plain,plain_1 top1",
            "refined top1 84.3 <= plain,plain_1 top1 84.3: within noise (1 and 2 seeds; spread 0.6)",
        ),
        ("plain,plain_1 top1 > far top1", "plain,plain_1 top1 84.3 > far top1 80: yes (1 and 2 seeds)"),
        ("far top1 > refined top1", "far top1 80 > refined top1 84.3: **no** (1 seed)"),
        ("lenet top1 > lenet_b top1", "lenet top1 99 > lenet_b top1 98.9: yes (1 seed)"),  # nothing of it was repeated
        ("plain prune cosine > 0.9", "plain prune cosine 0.96 > 0.9: yes (1 seed)"),
        ("plain prune cosine <= 1e-2", "plain prune cosine 0.96 <= 1e-2: **no** (1 seed)"),
    ],
)
def test_claims_are_judged_by_the_ledger(comparison, said):
    assert judge(comparison, LEDGER) == said


def test_what_is_said_beside_a_claim_has_no_verdict():
    assert shown("plain top1 > far top1", LEDGER) == "plain top1 84.6, far top1 80"


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
        assert claim.tests or claim.runs or "Not run yet" in claim.note, claim.claim
        for comparison in [*claim.runs, *claim.beside]:
            judge(comparison, load_ledger())  # raises where the ledger lacks a number
        for test in claim.tests:
            file, name = test.split("::")
            assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), test


def test_the_lassos_smaller_file_is_said_beside_wpcs_claim():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert "wpc_clip_l0.05 packed_bytes 40,619, wpc_lasso_l0.033 packed_bytes 34,872" in text


def test_every_command_of_the_ledger_still_means_something(configuration):
    for row in load_ledger():
        for command in row["command"].split(" && "):
            configuration(*shlex.split(command)[2:])  # raises for an unknown option or group


# -- where files go ----------------------------------------------------------------------------------------------------


def test_nothing_is_written_outside_a_checkout_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main(["results"])
    assert "is no checkout of sparsign" in raised.value.code and "\n" not in raised.value.code
    assert list(tmp_path.iterdir()) == []
    main(["results", "--to", str(tmp_path)])
    assert (tmp_path / "RESULTS.md").is_file()
    with pytest.raises(ValueError, match="expected an existing folder"):
        output(tmp_path / "none")
    monkeypatch.chdir(ROOT)
    assert output(None) == ROOT
