"""Two processes that share every batch train what one process trains on whole batches, and leave one run folder."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sparsign import train

ROOT = Path(__file__).parent.parent
SMALL = ["compressor=ttq", "model=lenet5", "schedule=smoke", "dataset.limit=96", "trainer.accelerator=cpu",
         "trainer.precision=fp32", "trainer.threads=1", "trainer.progress=false", "latency.seconds=0"]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_with_batches_of_both(configuration, tmp_path, plain_page):
    """LeNet-5 has no BN, whose statistics would be those of half a batch; TTQ's scales get no gradient in pretrain."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    result = subprocess.run(
        [*torchrun, str(ROOT / "train.py"), "trainer=ddp", *SMALL, "dataset.batch_size=8"], cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("run folder: ") == result.stdout.count("stage 2/2 quantize: 1 epoch,") == 1
    (folder,) = (tmp_path / "runs" / "ttq_lenet5_digits").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["reload"]["identical_predictions"] is True

    alone = train.run(configuration(*SMALL, "dataset.batch_size=16"), tmp_path / "alone")
    assert report["accuracy"]["top1"] == pytest.approx(alone["accuracy"]["top1"], abs=0.01)
    mine, theirs = rows(folder), rows(tmp_path / "alone")
    assert [(r["stage"], r.get("epoch")) for r in mine] == [(r["stage"], r.get("epoch")) for r in theirs]
    for name in ("train_loss", "train_top1", "val_top1", "lr"):
        assert [r[name] for r in mine if name in r] == pytest.approx([r[name] for r in theirs if name in r], rel=1e-4)


def test_several_devices_without_torchrun_are_refused_with_its_command(configuration, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.devices=2: .*torchrun --nproc_per_node=2 train\.py"):
        train.run(configuration(*SMALL, "trainer.devices=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
