"""Names of run and sweep folders: by what was asked for, short, valid, and no two jobs in one."""

import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sparsign.pipeline.naming import LONGEST_NAME, folder_name, names_of_jobs, run_dir, sweep_dir


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from sparsign.pipeline.naming import run_dir; print(run_dir(None, 'runs/2026'))"
    names = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(names) == 2 and all(name.startswith("runs/2026_") for name in names)
    assert run_dir("nowhere", "runs/2026") == "."
    (tmp_path / "there").mkdir()
    assert run_dir("there", "runs/2026") == "there"


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


def test_a_sweep_over_where_and_how_names_its_jobs_by_it():
    assert names_of_jobs(["seed=0,1", "-m", "dataset.root=/data", "trainer.threads=2"]) == []
    assert names_of_jobs(["dataset.root=/a,/b"]) == []
    assert names_of_jobs(["-m", "dataset.root=/a,/b", "hydra.sweep.subdir=mine"]) == []
    assert names_of_jobs(["-m", "latency.batches=[1,8]", "dataset.root=/a,/b", "logger='"]) == [
        "hydra.sweep.subdir='${job_dir:${hydra.overrides.task},\"dataset.root\"}'"
    ]
    jobs = [[f"dataset.root={root}", "trainer.threads=2", "seed=1"] for root in ("a", "b")]
    assert [folder_name(job, "dataset.root") for job in jobs] == ["dataset.root-a__seed-1", "dataset.root-b__seed-1"]


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
