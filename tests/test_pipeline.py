"""A whole run: its folder, what it refuses, and that a stopped run ends with the bits of one that never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from sparsign.compressors.wpc import WPC
from sparsign.configs.schema import DatasetConfig, LatencyConfig, TrainerConfig

ROOT = Path(__file__).parent.parent
TINY = ["model=resnet20", "dataset.limit=96", "dataset.batch_size=16", "latency.seconds=0", "trainer.threads=1"]


def command(script: str, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *overrides]


def cli(script: str, *overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run(
        command(script, *overrides), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def fails_with_one_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.stdout
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A smoke run of STQ-A, never stopped."""
    where = tmp_path_factory.mktemp("finished")
    result = cli("train.py", *TINY, "schedule=smoke", "schedule.pretrain.epochs=3", "hydra.run.dir=run", cwd=where)
    assert result.returncode == 0, result.stderr
    assert "top-1" in result.stdout and "model.sparsign" in result.stdout
    return where / "run"


def test_run_folder_holds_everything(finished):
    names = {p.name for p in finished.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "metrics.csv", "timing.json", "checkpoints", "model.sparsign",
                     "report.json", "report.html"}  # fmt: skip
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"pretrain.ckpt", "prune.ckpt", "finetune.ckpt"}
    assert not list(finished.rglob("*.part"))
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["compressor"]["name"] == "stq_a" and "${" not in (finished / "config.yaml").read_text()


def test_report_agrees_with_the_file_and_proves_the_reload(finished):
    report = json.loads((finished / "report.json").read_text())
    assert report["reload"]["identical_predictions"] is True
    assert report["reload"]["max_logit_error"] < 1e-4
    assert report["accuracy"]["top1"] == report["accuracy"]["trained_top1"]
    assert report["size"]["packed_bytes"] == (finished / "model.sparsign").stat().st_size
    ratio = report["size"]["float_bytes"] / report["size"]["packed_bytes"]
    assert report["size"]["compression_ratio"] == pytest.approx(ratio)
    # 688 filters in the binary 3x3 convs; floor(0.4 * 688) = 275, less what caps of 16-filter layers forbid
    assert 0 < report["structure"]["pfr"] <= report["structure"]["pfr_asked"] == 0.4


def test_metrics_have_one_row_per_epoch_and_one_per_stage(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r.get("epoch")) for r in rows] == [
        ("pretrain", 0), ("pretrain", 1), ("pretrain", 2), ("pretrain", None),
        ("prune", None), ("finetune", 0), ("finetune", None),
    ]  # fmt: skip
    assert all("val_top1" in r for r in rows if "epoch" in r)


def test_checkpoints_load_as_plain_data(finished):
    for path in (finished / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["stage"] == path.stem


def test_evaluate_reads_only_the_packed_file(finished, tmp_path):
    (tmp_path / "model.sparsign").write_bytes((finished / "model.sparsign").read_bytes())
    result = cli("evaluate.py", "packed=model.sparsign", "latency.seconds=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    mine, theirs = (json.loads((f / "report.json").read_text()) for f in (tmp_path, finished))
    assert mine["accuracy"]["top1"] == theirs["accuracy"]["top1"] and mine["reload"]["identical_predictions"]
    assert {row["engine"] for row in mine["speed"]} and all(row["milliseconds"] > 0 for row in mine["speed"])


@pytest.mark.parametrize("moment", ["first epoch", "mid stage", "finetune"])
def test_killed_and_resumed_run_ends_with_the_same_bits(finished, tmp_path, moment):
    arguments = [*TINY, "schedule=smoke", "schedule.pretrain.epochs=3"]
    run = tmp_path / "run"
    mark = {
        "first epoch": run / "metrics.jsonl",
        "mid stage": run / "checkpoints" / "mid_stage.ckpt",
        "finetune": run / "checkpoints" / "prune.ckpt",
    }[moment]
    process = subprocess.Popen(
        command("train.py", *arguments, "hydra.run.dir=run"), cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "report.json").exists(), "the run was over before it could be killed"
    result = cli("train.py", *arguments, "resume=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (run / "model.sparsign").read_bytes() == (finished / "model.sparsign").read_bytes()
    assert [json.loads(r)["stage"] for r in (run / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(r)["stage"] for r in (finished / "metrics.jsonl").read_text().splitlines()
    ]


def test_interrupt_says_how_to_resume(tmp_path):
    process = subprocess.Popen(
        command("train.py", *TINY, "schedule.pretrain.epochs=50", "hydra.run.dir=run"), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "mid_stage.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "add resume=run to the same command" in output and "Traceback" not in output


def test_help_shows_every_option_of_the_chosen_members(tmp_path):
    shown = cli("train.py", "compressor=wpc", "dataset=mnist", "--help", cwd=tmp_path, COLUMNS="120").stdout
    assert "$" not in shown and max(map(len, shown.splitlines())) < 180 and shown.count("\n") < 115
    pages = {"compressor": WPC, "dataset": DatasetConfig, "trainer": TrainerConfig, "latency": LatencyConfig}
    for group, cls in pages.items():
        for option in fields(cls):
            if option.name not in ("_target_", "name"):
                line = next(line for line in shown.splitlines() if line.startswith(f"  {group}.{option.name}="))
                assert option.metadata["help"][:40] in line
    assert re.search(r"\n  compressor.lambda_=0.002 +weight of the penalty  \[0, inf\)\n", shown)
    assert re.search(r"\n  schedule.<stage>.epochs=5\|3\|3\|2 ", shown) and "\n  dataset.root=data " in shown
    assert not list(tmp_path.iterdir())


BAD = {
    "range": (["compressor.pfr=1.7"], "compressor.pfr=1.7: expected a value in [0, 1)"),
    "type": (["compressor.pfr=abc"], "compressor.pfr=abc: expected a value of type float"),
    "misspelt": (["compressor.prf=0.2"], "compressor.prf: no such option (did you mean pfr?)"),
    "member": (["model=resnet81"], "model=resnet81: no such member of group model (did you mean resnet18?)"),
    "stage option": (["schedule.pretrain.epochs=-1"], "schedule.pretrain.epochs=-1: expected a value in [0, inf)"),
    "data folder": (["dataset=cifar10", "dataset.root=nowhere", "dataset.download=false"], "dataset.root=nowhere"),
    "resume": (["resume=nowhere"], "resume=nowhere"),
    "form": (["model=lenet5"], "model.form=fbin"),
    "accelerator": (["trainer.accelerator=tpu"], "trainer.accelerator=tpu: expected a value in auto | cpu | gpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_line(case, tmp_path):
    overrides, said = BAD[case]
    line = fails_with_one_line(cli("train.py", *overrides, "hydra.run.dir=run", cwd=tmp_path))
    assert said in line
    assert not list(tmp_path.rglob("*.ckpt"))


def test_run_folder_of_another_config_is_left_alone(finished, tmp_path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    other = cli("train.py", *TINY, "schedule=smoke", "compressor.pfr=0.2", f"resume={finished}", cwd=tmp_path)
    assert "compressor.pfr=0.4 there, 0.2 asked" in fails_with_one_line(other)
    same = cli(
        "train.py", *TINY, "schedule=smoke", "schedule.pretrain.epochs=3", f"hydra.run.dir={finished}", cwd=tmp_path
    )
    assert f"add resume={finished}" in fails_with_one_line(same)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_damaged_packed_file_gives_one_clear_line(finished, tmp_path):
    data = bytearray((finished / "model.sparsign").read_bytes())
    (tmp_path / "short.sparsign").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1
    (tmp_path / "altered.sparsign").write_bytes(data)
    for name in ("short", "altered"):
        assert f"{name}.sparsign" in fails_with_one_line(cli("evaluate.py", f"packed={name}.sparsign", cwd=tmp_path))


def test_multirun_gives_two_folders_one_summary_and_skips_what_is_finished(tmp_path):
    arguments = ["-m", *TINY, "schedule=smoke", "compressor.pfr=0.2,0.4", "sweep=pair"]
    first = cli("train.py", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    packed = sorted((tmp_path / "multirun" / "pair").rglob("model.sparsign"))
    assert len(packed) == 2
    assert packed[0].stat().st_size > packed[1].stat().st_size
    assert {"summary.csv", "pareto.png", "sweep.html"} <= {p.name for p in (tmp_path / "multirun" / "pair").iterdir()}
    stamps = [p.stat().st_mtime_ns for p in packed]
    second = cli("train.py", *arguments, cwd=tmp_path)
    assert second.returncode == 0 and second.stdout.count("nothing to do") == 2
    assert [p.stat().st_mtime_ns for p in packed] == stamps


def test_wandb_offline_logs_one_run_and_resumes_it(tmp_path):
    result = cli("train.py", *TINY, "schedule=smoke", "compressor=bwn", "logger=wandb", "logger.mode=offline",
                 "hydra.run.dir=run", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    runs = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 1 and runs[0].name.endswith((tmp_path / "run" / "wandb_id").read_text())
