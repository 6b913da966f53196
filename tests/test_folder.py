"""The run folder's promises: one owner, one config and recipe, no metrics of what runs again."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

from sparsign.pipeline import origin
from sparsign.pipeline.folder import RunFolder, save_atomic
from sparsign.pipeline.lock import InUseError

CONFIG = {
    "seed": 0, "resume": None, "sweep": None, "compressor": {"name": "stq_a", "pfr": 0.4, "ratios": {}},
    "dataset": {"name": "digits", "root": "data", "workers": 0, "download": True}, "logger": {"mode": "auto"},
    "trainer": {"threads": None, "progress": True, "precision": "fp32"}, "latency": {"seconds": 6.0},
}  # fmt: skip


def changed(**options) -> dict:
    config = json.loads(json.dumps(CONFIG))
    for name, value in options.items():
        group, _, key = name.partition("__")
        config[group] = {**config[group], key: value} if key else value
    return config


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run under way: claimed, one stage finished."""
    found = RunFolder(tmp_path / "run")
    found.claim(CONFIG, resume=False)
    save_atomic({"stage": "pretrain"}, found.boundary("pretrain"))
    return found


def contents(folder: RunFolder) -> dict:
    return {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


def refusal(folder: RunFolder, config: dict, resume: bool) -> str:
    before = contents(folder)
    with pytest.raises(ValueError) as caught:
        folder.claim(config, resume)
    assert contents(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_new_folder_gets_the_config(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.claim(CONFIG, resume=False)
    assert yaml.safe_load(folder.config.read_text()) == CONFIG
    assert not folder.started and not folder.finished


def test_folder_without_anything_to_lose_is_taken_over(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG, resume=False)
    folder.claim(changed(seed=1), resume=False)
    assert yaml.safe_load(folder.config.read_text())["seed"] == 1


def test_started_run_is_only_entered_to_resume(folder):
    assert f"add resume={folder.path}" in refusal(folder, CONFIG, resume=False)
    before = contents(folder)
    folder.claim(CONFIG, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize("resume", [True, False])
def test_other_config_is_refused(folder, resume):
    assert "compressor.pfr=0.4 there, 0.2 asked" in refusal(folder, changed(compressor__pfr=0.2), resume)
    two = refusal(folder, changed(compressor__pfr=0.2, seed=3), resume)
    assert "compressor.pfr" in two and "1 more option" in two
    assert "compressor.ratios.conv1" in refusal(folder, changed(compressor__ratios={"conv1": 0.5}), resume)
    assert "trainer.precision=fp32 there, bf16 asked" in refusal(folder, changed(trainer__precision="bf16"), resume)


def test_where_a_run_computes_may_change_on_resuming(folder):
    before = contents(folder)
    elsewhere = {
        "resume": "run", "sweep": "s", "dataset__root": "/elsewhere", "dataset__workers": 3, "dataset__download": False,
        "trainer__threads": 2, "trainer__progress": False, "logger": {"mode": "offline", "project": "p"},
        "latency": {"seconds": 0.0, "batches": [8]},
    }  # fmt: skip
    folder.claim(changed(**elsewhere), resume=True)
    assert contents(folder) == before


def test_no_run_folder_cannot_be_resumed(tmp_path):
    assert "not a run folder" in refusal(RunFolder(tmp_path / "nothing"), CONFIG, resume=True)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "notes.txt").write_text("mine")
    assert "not a run folder" in refusal(RunFolder(tmp_path), CONFIG, resume=True)


@pytest.mark.parametrize("left", ["checkpoints/pretrain.ckpt", "model.sparsign", "report.json"])
@pytest.mark.parametrize("resume", [True, False])
def test_results_without_config_are_refused(tmp_path, left, resume):
    save_atomic({"stage": "pretrain"}, tmp_path / left)
    assert "but no config.yaml" in refusal(RunFolder(tmp_path), CONFIG, resume)


@pytest.mark.parametrize("damage", [b"seed: [1, 2", b"\xff\xfe\x00", b"just words", b""])
def test_unreadable_config_is_refused(folder, damage):
    folder.config.write_bytes(damage)
    for resume in (True, False):
        assert f"{folder.config}: not a readable config" in refusal(folder, CONFIG, resume)


def test_finished_needs_report_and_packed_file(folder):
    folder.packed.write_bytes(b"x")
    assert not folder.finished
    folder.report.write_text("{}")
    assert folder.finished
    folder.packed.unlink()
    assert not folder.finished


ROWS = [
    {"stage": "pretrain", "epoch": 0}, {"stage": "pretrain", "epoch": 1}, {"stage": "pretrain", "test_top1": 0.5},
    {"stage": "prune", "epoch": 0}, {"stage": "prune", "epoch": 1}, {"stage": "prune", "epoch": 2},
    {"stage": "prune", "test_top1": 0.4}, {"stage": "finetune", "epoch": 0},
]  # fmt: skip


@pytest.mark.parametrize(
    "finished, under_way, epoch, kept",
    [
        ([], None, 0, []),
        ([], "pretrain", 1, [0]),
        (["pretrain"], None, 0, [0, 1, 2]),
        (["pretrain"], "prune", 2, [0, 1, 2, 3, 4]),
        (["pretrain", "prune"], "finetune", 0, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_metrics_of_what_runs_again_are_dropped(tmp_path, finished, under_way, epoch, kept):
    folder = RunFolder(tmp_path)
    for row in ROWS:
        folder.append_metrics(row)
    folder.drop_metrics(finished, under_way, epoch)
    assert folder.read_metrics() == [ROWS[i] for i in kept]


def test_half_a_last_line_is_no_row_and_does_not_spoil_the_next(tmp_path):
    folder = RunFolder(tmp_path)
    for row in ROWS[:3]:
        folder.append_metrics(row)
    whole = folder.metrics.read_bytes()
    for length in range(whole.rindex(b"\n", 0, -1) + 2, len(whole) - 1):
        folder.metrics.write_bytes(whole[:length])
        assert folder.read_metrics() == ROWS[:2]
    folder.drop_metrics(["pretrain"], None, 0)
    folder.append_metrics(ROWS[3])
    assert folder.read_metrics() == [ROWS[0], ROWS[1], ROWS[3]]
    assert RunFolder(tmp_path / "none").read_metrics() == []


def test_a_bad_line_of_metrics_is_left_out_and_counted(tmp_path):
    folder = RunFolder(tmp_path)
    for line in (json.dumps(ROWS[0]).encode(), b"\xff\x00", b"[1, 2]", b'{"epoch": 3}', json.dumps(ROWS[1]).encode()):
        with folder.metrics.open("ab") as f:
            f.write(line + b"\n")
    assert folder.read_metrics() == ROWS[:2] and folder.bad_metrics == 3
    with folder.metrics.open("ab") as f:
        f.write(b'{"stage": "pret')  # what a kill leaves
    assert folder.read_metrics() == ROWS[:2] and folder.bad_metrics == 3


STAGES = [{"name": "pretrain", "epochs": 5, "optimizer": "adam", "lr": 0.001}, {"name": "prune", "epochs": 0}]
CODE = {"commit": "a" * 40, "dirty": False, "torch": "2.14.0"}


def test_another_recipe_is_refused_in_one_line_that_names_it(folder):
    assert folder.record(STAGES, CODE) is None
    before = contents(folder)
    assert folder.record(STAGES, CODE) is None and contents(folder) == before
    other = [{**STAGES[0], "lr": 0.01}, STAGES[1]]
    with pytest.raises(ValueError, match=r"made by another recipe: pretrain\.lr=0\.001 there, 0\.01 now"):
        folder.record(other, CODE)
    with pytest.raises(ValueError, match="stages pretrain, prune there, pretrain now; use another folder"):
        folder.record(STAGES[:1], CODE)
    assert contents(folder) == before


def test_other_code_is_a_warning_that_is_kept(folder):
    folder.record(STAGES, CODE)
    warning = folder.record(STAGES, {**CODE, "commit": "b" * 40, "torch": "2.15.0"})
    assert "commit aaaaaaaaaaaa then, bbbbbbbbbbbb now; torch 2.14.0 then, 2.15.0 now" in warning
    kept = yaml.safe_load(folder.stages.read_text())
    assert [entry["commit"][0] for entry in kept["code"]] == ["a", "b"] and kept["stages"] == STAGES


def test_code_is_this_checkouts_commit_and_versions():
    told = origin.code()
    assert told["torch"] == version("torch") and (
        told["commit"] is None or re.fullmatch("[0-9a-f]{40}", told["commit"])
    )


def test_run_folder_of_an_older_form_can_be_resumed(folder):
    """Without stages.yaml, without options that came later, and with targets that do not name the package."""
    older = changed(compressor__name="stq_a")
    older["compressor"]["_target_"] = "compressors.stq_a.STQA"
    folder.config.write_text(yaml.safe_dump(older))
    newer = changed(compressor__later=None)
    newer["compressor"]["_target_"] = "sparsign.compressors.stq_a.STQA"
    folder.claim(newer, resume=True)
    assert folder.record(STAGES, CODE) is None


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    hold = "import sys; from pathlib import Path; from sparsign.pipeline.lock import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1]), 'it'):\n    print('held', flush=True); sys.stdin.read()"
    (tmp_path / "deep" / "run").mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", hold, folder.path / ".lock"], stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=rf"run folder .*run is in use by process {other.pid} on "), folder.locked():
        pass
    other.kill()
    other.wait()
    with folder.locked():
        assert (folder.path / ".lock").is_file()
    assert not (folder.path / ".lock").exists()


def test_a_folder_made_for_a_run_that_writes_nothing_is_gone_again(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path / "a" / "b").locked():
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with RunFolder(tmp_path / "mine").locked():
        pass
    assert (tmp_path / "mine").is_dir()


def test_seconds_of_a_resumed_stage_add_up(tmp_path):
    folder = RunFolder(tmp_path)
    for stage, seconds in (("pretrain", 1.5), ("prune", 2.0), ("pretrain", 0.25)):
        folder.add_seconds(stage, seconds)
    assert json.loads(folder.timing.read_text()) == {"pretrain": 1.75, "prune": 2.0}
    folder.timing.write_text('{"pretrain": ')
    folder.add_seconds("prune", 1.0)
    assert json.loads(folder.timing.read_text()) == {"prune": 1.0}
    folder.timing.write_text("[]")
    folder.add_seconds("prune", 1.0)
    assert json.loads(folder.timing.read_text()) == {"prune": 1.0}
