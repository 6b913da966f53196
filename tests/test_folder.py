"""The run folder's promises: whole files, one owner, no metrics of what runs again."""

import json
import re

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sparsign.packing import atomic
from sparsign.pipeline.folder import RunFolder, load_plain, save_atomic
from sparsign.pipeline.naming import LONGEST_NAME, folder_name, sweep_dir

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


def test_interrupted_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    atomic.write_atomic(path, "old")

    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", broken)
        for write in (lambda: atomic.write_atomic(path, b"new"), lambda: save_atomic({"a": 1}, path)):
            with pytest.raises(KeyboardInterrupt):
                write()
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    atomic.write_atomic(path, b"new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_checkpoints_are_plain_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "a.ckpt"
    save_atomic({"stage": "prune", "model": {"w": torch.arange(3.0)}}, path)
    assert torch.equal(load_plain(path)["model"]["w"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.ckpt: not a readable checkpoint"):
        load_plain(path)
    torch.save(RunFolder("x"), path)  # a pickled object of ours
    with pytest.raises(ValueError, match=r"a\.ckpt: not a readable checkpoint"):
        load_plain(path)


def test_seconds_of_a_resumed_stage_add_up(tmp_path):
    folder = RunFolder(tmp_path)
    for stage, seconds in (("pretrain", 1.5), ("prune", 2.0), ("pretrain", 0.25)):
        folder.add_seconds(stage, seconds)
    assert json.loads(folder.timing.read_text()) == {"pretrain": 1.75, "prune": 2.0}
    folder.timing.write_text('{"pretrain": ')
    folder.add_seconds("prune", 1.0)
    assert json.loads(folder.timing.read_text()) == {"prune": 1.0}


def test_sweep_folder_is_named_by_what_it_sweeps():
    overrides = [
        "model=nin",
        "compressor.pfr=0.1,0.2",
        "dataset.root=/data",
        "resume=x",
        "sweep=y",
        "trainer.threads=1",
    ]
    assert sweep_dir(None, overrides) == "multirun/compressor.pfr-0.1+0.2__model-nin"
    assert sweep_dir(None, overrides[::-1]) == sweep_dir(None, overrides)
    assert sweep_dir("mine", overrides) == "multirun/mine" and sweep_dir("/tmp/mine", overrides) == "/tmp/mine"
    assert sweep_dir(None, []) == "multirun/default"


def test_job_folders_have_short_valid_names_of_their_own():
    many = [f"compressor.float_layers=[layer{k}.conv1]" for k in range(300)]
    odd = [
        "",
        "a/b",
        "a_b",
        "a b",
        "a+b",
        "a,b",
        "a-b",
        "..",
        "/",
        "\\",
        "[1,8]",
        "{a:1}",
        "'x'",
        "${seed}",
        "é",
        "*",
        "\n",
    ]
    jobs = [[f"model.pretrained={v}"] for v in odd] + [[f"model.pretrained={'a/' * 99}{k}"] for k in (1, 2)]
    names = [folder_name(job) for job in [*jobs, many, many[:-1], [*many, "seed=1"]]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.+-]+", n, re.ASCII) and len(n) <= LONGEST_NAME for n in names), names
    assert folder_name(["compressor.pfr=0.2", "seed=1"]) == "compressor.pfr-0.2__seed-1"


@given(st.lists(st.text(), max_size=4).map(sorted), st.lists(st.text(), max_size=4).map(sorted))
def test_any_two_jobs_have_different_folders(one, other):
    one, other = ([f"model.pretrained={v}" for v in values] for values in (one, other))
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_every_job_of_a_sweep_finds_the_folder_of_the_sweep():
    """Hydra hands the cache of its resolvers from the sweep's config to each job's, whose overrides are its own."""
    text = "${sweep_dir:${sweep},${hydra.overrides.task}}"

    def config(*overrides):
        return OmegaConf.create({"sweep": None, "hydra": {"overrides": {"task": list(overrides)}}, "folder": text})

    sweep, jobs = config("compressor.pfr=0.1,0.2"), [config(f"compressor.pfr={r}") for r in (0.1, 0.2)]
    assert sweep.folder == "multirun/compressor.pfr-0.1+0.2"
    for job in jobs:
        OmegaConf.copy_cache(from_config=sweep, to_config=job)
    assert [job.folder for job in jobs] == [sweep.folder] * 2
