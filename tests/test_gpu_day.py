"""Rows in windows on a borrowed machine: what goes there and comes back, and that a window goes on with the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_day

SCRIPT = Path(gpu_day.__file__).with_suffix(".sh")
KIB = 1 / 1024


def run_folder(place: Path, name: str, *, done: bool = False) -> Path:
    run = place / "runs" / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0")
    (run / "metrics.jsonl").write_text('{"stage": "pretrain", "epoch": 4}\n')
    for age, stage in enumerate(("pretrain", "prune", "mid_stage")):
        path = run / "checkpoints" / f"{stage}.ckpt"
        torch.save({"stage": stage, "test_top1": 0.5, "model": {"w": torch.ones(3000)}}, path)
        os.utime(path, (1000 + age, 1000 + age))
    for name in ("report.json", "model.sparsign") if done else ():
        (run / name).write_text('{"accuracy": {"top1": 0.5}}')
    return run


def checkpoint(place: Path, stage: str) -> dict:
    return torch.load(place / "runs" / "row" / "checkpoints" / f"{stage}.ckpt", weights_only=True)


def carry(outs: list[Path], mirror: Path) -> bool:
    return [gpu_day.take(out, mirror) for out in outs][-1]


def test_what_a_window_cannot_carry_comes_with_the_next(tmp_path):
    store, mirror = tmp_path / "store", tmp_path / "mirror"
    run_folder(store, "row")
    run_folder(store, "over", done=True)
    windows = []
    while not windows or list(windows[-1].iterdir()):
        windows.append(tmp_path / f"out{len(windows)}")
        gpu_day.give(store, windows[-1], 8 * KIB, 2)
    assert len(windows) > 3
    sizes = [[path.stat().st_size for path in out.iterdir()] for out in windows]
    assert all(len(s) <= 2 and max(s, default=0) <= 8192 for s in sizes)
    assert not carry(windows[:-2], mirror)  # the last pieces are missing
    assert (mirror / "runs" / "over" / "model.sparsign").is_file()  # results came first
    assert carry(windows, mirror)
    assert "model" in checkpoint(mirror, "prune") and "model" in checkpoint(mirror, "mid_stage")
    assert checkpoint(mirror, "pretrain") == {"stage": "pretrain", "test_top1": 0.5}  # nobody reads its weights again
    assert not (mirror / "runs" / "over" / "checkpoints").exists()


def test_a_stage_under_way_is_not_carried_when_it_is_over(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    run = run_folder(store, "row")
    gpu_day.give(store, out, 8 * KIB, 4)  # its last piece waits
    waiting = [path.name[0] for path in (store / "outbox").iterdir()]
    assert "3" in waiting
    torch.save({"stage": "finetune", "test_top1": 0.5, "model": {}}, run / "checkpoints" / "finetune.ckpt")
    gpu_day.give(store, out, 8 * KIB, 9)
    assert not list((store / "outbox").iterdir())
    assert "mid_stage.ckpt" not in str(gpu_day.checkpoints(run))
    assert "3" not in [path.name[0] for path in out.iterdir()]


def test_a_new_machine_gets_the_data_and_what_is_begun(tmp_path):
    mirror, store, data = tmp_path / "mirror", tmp_path / "store", tmp_path / "cifar"
    run_folder(mirror, "row")
    run_folder(mirror, "over", done=True)
    data.mkdir()
    (data / "batch.bin").write_bytes(bytes(range(256)) * 64)
    gpu_day.pack(mirror, tmp_path / "in", data, 8 * KIB)
    pieces = sorted((tmp_path / "in").iterdir())
    first, rest = tmp_path / "first", tmp_path / "rest"
    for folder, mine in ((first, pieces[3:]), (rest, pieces[:3])):  # in any order
        folder.mkdir()
        for piece in mine:
            (folder / piece.name).write_bytes(piece.read_bytes())
    assert not gpu_day.take(first, store) and not (store / "data").exists()
    assert gpu_day.take(rest, store)
    assert (store / "data" / "cifar" / "batch.bin").read_bytes() == (data / "batch.bin").read_bytes()
    assert [run.name for run in gpu_day.runs(store)] == ["row"] and "model" in checkpoint(store, "mid_stage")
    (store / "runs" / "row" / "metrics.jsonl").write_text("further\n")
    assert gpu_day.take(tmp_path / "in", store)  # the same pieces again: they are known
    assert (store / "runs" / "row" / "metrics.jsonl").read_text() == "further\n"
    gpu_day.give(store, tmp_path / "out", 1, 4)
    assert [path.name.split(".")[0][:9] for path in (tmp_path / "out").iterdir()] == ["1-results"]  # what is new


STAND_IN = """#!{python}
import os, pathlib, signal, sys, time
if not sys.argv[1].endswith("train.py"):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
words = dict(word.split("=", 1) for word in sys.argv[2:])
run = pathlib.Path(words.get("resume") or words["hydra.run.dir"])
run.mkdir(exist_ok=True)
(run / "config.yaml").touch()
with open(run / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[2:]) + "\\n")
if words["experiment"] == "bad":
    sys.exit("error: seed=-1")
if "resume" not in words and words["experiment"] == "long":
    time.sleep(60)
for name in ("report.json", "model.sparsign"):
    (run / name).write_text('{{"accuracy": {{"top1": 0.25}}}}')
"""
"""In train.py's place: a row that fails, one that its first window is too short for, one that ends at once."""


@pytest.fixture
def window(tmp_path):
    stand_in, queue = tmp_path / "python", tmp_path / "queue"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    queue.write_text("# rows\nbad\nquick compressor.pfr=0.2\n\nlong\n")
    (tmp_path / "store" / "data").mkdir(parents=True)
    told = {"PYTHON": str(stand_in), "QUEUE": str(queue), "STORE": str(tmp_path / "store"), "MARGIN": "55"}

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([SCRIPT, *words], env=os.environ | told, capture_output=True, text=True, cwd=tmp_path)

    return call


def test_a_window_goes_on_where_the_last_one_stopped(window, tmp_path):
    first = window("window", "1", "none", "out")
    assert first.returncode == 0, first.stderr
    assert "quick: finished" in first.stdout and "long: stopped, goes on in the next window" in first.stdout
    assert "error: seed=-1" in first.stdout
    second = window("window", "1", "none", "out")
    assert "long: finished" in second.stdout and "quick" not in second.stdout and "bad" not in second.stdout
    runs = tmp_path / "store" / "runs"
    calls = (runs / "long" / "calls").read_text().splitlines()
    assert f"hydra.run.dir={runs / 'long'}" in calls[0] and f"resume={runs / 'long'}" in calls[1]
    assert (runs / "quick" / "calls").read_text().strip().endswith("trainer.deterministic=false compressor.pfr=0.2")
    assert window("unpack", "out", "mirror").returncode == 0
    states = [line.split(maxsplit=1) for line in window("list", "mirror").stdout.splitlines()]
    assert states == [["bad", "failed: error: seed=-1"], ["quick", "finished: 25.00 %"], ["long", "finished: 25.00 %"]]
    assert json.loads((tmp_path / "mirror" / "runs" / "quick" / "report.json").read_text())["accuracy"]["top1"] == 0.25


@pytest.mark.parametrize("words", [["pack"], ["window", "ten", "in", "out"], ["pack", "mirror", "in"], ["pak"]])
def test_bad_words_give_a_line(words, window):
    result = window(*words)
    assert result.returncode != 0 and len((result.stderr or result.stdout.splitlines()[0]).splitlines()) == 1
    assert window("--help").returncode == 0
