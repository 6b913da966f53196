"""A whole run: its folder, what it refuses, and that a stopped run ends with the bits of one that never stopped."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

import sparsign
from sparsign import train
from sparsign.compressors.wpc import WPC
from sparsign.configs.schema import DatasetConfig, LatencyConfig, TrainerConfig
from sparsign.evaluation.repack import repack
from sparsign.packing.file import read
from sparsign.pipeline import build, origin
from sparsign.pipeline.failures import SweepFailures, failures
from sparsign.pipeline.folder import RunFolder
from sparsign.pipeline.plan import resolve, without_effect
from sparsign.pipeline.tracking import CsvTracker
from sparsign.reports.record import ledger_row
from tests.conftest import TINY_DATA

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


def test_run_folder_says_what_ran(finished):
    told = yaml.safe_load((finished / "stages.yaml").read_text())
    assert [(s["name"], s["epochs"]) for s in told["stages"]] == [("pretrain", 3), ("prune", 0), ("finetune", 1)]
    first = told["stages"][0]
    assert (first["optimizer"], first["lr"], first["decay"], first["weight_decay"]) == ("adam", 1e-3, "cosine", 0.0)
    assert first["precision"] in ("fp32", "bf16") and first["bn_batches"] == 1 and first["max_batches"] == 4
    assert "momentum" not in first and told["stages"][1] == {"name": "prune", "epochs": 0}
    assert told["code"][0]["torch"] == version("torch") and "commit" in told["code"][0]
    report = json.loads((finished / "report.json").read_text())
    assert (report["recipe"], report["code"]) == (told["stages"], told["code"])
    row = ledger_row(report, {}, "smoke", "python train.py", {})
    assert row["recipe"] == told["stages"] and row["versions"]["torch"] == version("torch")
    assert row.get("commit", "").removesuffix("-dirty") == (told["code"][0]["commit"] or "")


def test_a_cap_of_the_rate_is_told(configuration):
    config = configuration("compressor=ptq", "model=lenet5", "schedule=paper")
    told = [plan.told for plan in resolve(config, build.compressor(config), build.model(config))]
    assert [(t["name"], t["lr"]) for t in told] == [("pretrain", 0.02), ("prune", 0.02), ("quantize", 0.01)]


def test_words_without_effect_are_told(configuration):
    config = configuration("compressor=twn", "model=lenet5", "schedule=smoke")
    twn = build.compressor(config)
    plans = resolve(config, twn, build.model(config))
    words = ["compressor=twn", "schedule.prune.epochs=2", "+schedule.quantize.lr=0.1", "schedule.teacher=a"]
    told = without_effect(words, twn, plans)
    assert told == ["schedule.prune.epochs=2: has no effect, twn has no stage prune"]
    config = configuration("compressor=stq_a", "model=resnet20", *TINY_DATA)
    stq_a = build.compressor(config)
    words = {
        "schedule.prune.lr=0.3": "stage prune trains nothing",
        "schedule.finetune.momentum=0.5": "it is for optimizer=sgd and stage finetune has optimizer=adam",
        "schedule.finetune.milestones=[0.9]": "it is for decay=multistep and stage finetune has decay=cosine",
    }
    harmless = ["schedule.prune.cut=true", "schedule.prune.epochs=0", "schedule.finetune.bn_batches=3"]
    told = without_effect([*words, *harmless], stq_a, resolve(config, stq_a, build.model(config)))
    assert told == [f"{word}: has no effect, {reason}" for word, reason in words.items()]


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
    assert all(r["lr"] > 0 for r in rows if "epoch" in r)  # of the last step, not of one after it, which would be 0


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


def test_a_finished_run_is_packed_again_from_its_last_checkpoint(finished, tmp_path):
    """Of an older form: without options that came later, targets that do not name the package, an unreadable file."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["leftovers"], config["schedule"]["teacher"]
    for group in ("compressor", "model", "dataset"):
        config[group]["_target_"] = config[group]["_target_"].removeprefix("sparsign.")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "model.sparsign").write_bytes(b"of another version")
    result = cli("evaluate.py", "run=run", "repack=true", "latency.seconds=0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "came after this run have their defaults: leftovers, schedule.teacher" in result.stdout
    assert (run / "model.sparsign").read_bytes() == (finished / "model.sparsign").read_bytes()
    assert not list(run.glob("*repacked*")) and not list(run.glob(".lock"))
    report = json.loads((run / "report.json").read_text())
    assert report["packed"] == "run/model.sparsign" and report["reload"]["identical_predictions"] is True


def test_packing_again_says_what_is_missing_and_leaves_the_old_file(finished, tmp_path):
    run, quiet = tmp_path / "run", Console(quiet=True)
    shutil.copytree(finished, run)
    before = (run / "model.sparsign").read_bytes()
    (run / "checkpoints" / "finetune.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^run={run}: holds no checkpoints/finetune.ckpt"):
        repack(RunFolder(run), None, None, quiet)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["compressor"]["gone"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"code cannot read its config\.yaml: .*gone") as caught:
        repack(RunFolder(run), None, None, quiet)
    assert "\n" not in str(caught.value)
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        repack(RunFolder(run), None, None, quiet)
    assert (run / "model.sparsign").read_bytes() == before


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


class Interrupting(CsvTracker):
    """Sends Ctrl-C to its own process at the end of the first epoch."""

    def row(self, row: dict) -> None:
        super().row(row)
        signal.raise_signal(signal.SIGINT)


def test_interrupt_says_how_to_resume(configuration, tmp_path, capsys, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    config = configuration(*TINY, "schedule=smoke", "schedule.pretrain.epochs=2", "trainer.progress=false")
    config.logger._target_ = f"{__name__}.Interrupting"
    with pytest.raises(SystemExit) as caught:
        train.run(config, tmp_path / "run")
    assert caught.value.code == 130
    assert f"add resume={tmp_path / 'run'} to the same command" in capsys.readouterr().out


def test_help_shows_every_option_of_the_chosen_members(tmp_path):
    shown = cli("train.py", "compressor=wpc", "dataset=mnist", "--help", cwd=tmp_path, COLUMNS="120").stdout
    assert "$" not in shown and max(map(len, shown.splitlines())) < 180 and shown.count("\n") < 150
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
    "resume": (["resume=nowhere"], "resume=nowhere: there is no such folder"),
    "form": (["model=lenet5"], "model.form=fbin"),
    "accelerator": (["trainer.accelerator=tpu"], "trainer.accelerator=tpu: expected a value in auto | cpu | gpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_line(case, tmp_path):
    overrides, said = BAD[case]
    line = fails_with_one_line(cli("train.py", *overrides, "hydra.run.dir=run", cwd=tmp_path))
    assert said in line
    assert not list(tmp_path.iterdir())


class Unknown(nn.Module):
    """A network with an operation that no packed file knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cumsum(self.middle(self.first(images)), 1).amax((2, 3)))


def unknown(num_classes: int, in_channels: int, image_size: int, form: str) -> nn.Module:
    return Unknown()


def test_a_network_that_cannot_be_packed_is_refused_before_training(configuration, tmp_path):
    config = configuration("compressor=twn", "model=lenet5", *TINY_DATA, f"model._target_={__name__}.unknown")
    with pytest.raises(ValueError, match=r"^model=lenet5 cannot be packed: cumsum: cumsum is not a known operation"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failing_job_does_not_end_its_sweep(tmp_path):
    """Its reason is kept, the exit code is not 0, and the same command again does only what is missing."""
    arguments = ["-m", *TINY, "model=lenet5", "compressor=twn", "schedule=smoke", "sweep=s",
                 "compressor.float_layers=[nope],[first]"]  # fmt: skip
    first = cli("train.py", *arguments, cwd=tmp_path)
    assert first.returncode == 1 and "Traceback" not in first.stderr
    reason = "compressor.float_layers=nope: no layer's name has it"
    assert [line.split(":")[0] for line in first.stderr.splitlines()] == ["error", "failed"]
    assert all(reason in line for line in first.stderr.splitlines())
    (good,) = (tmp_path / "multirun" / "s").glob("*/report.json")
    (bad,) = (tmp_path / "multirun" / "s").glob("*/failure.json")
    with (good.parent.parent / "summary.csv").open() as file:
        rows = {row["run"]: row["failed"] for row in csv.DictReader(file)}
    assert rows[good.parent.name] == "" and reason in rows[bad.parent.name]
    assert reason.replace("'", "&#x27;") in (good.parent.parent / "sweep.html").read_text()
    assert good.parent != bad.parent and reason in json.loads(bad.read_text())["reason"]
    second = cli("train.py", *arguments, cwd=tmp_path)
    assert second.returncode == 1 and second.stdout.count("nothing to do") == 1


def test_an_earlier_sweeps_failures_are_not_this_ones(tmp_path):
    told = tmp_path / "s" / "job" / "failure.json"
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"reason": "an option of then"}))
    callback = SweepFailures()
    for seconds, failed in ((-60, {}), (0, {"job": "an option of then"})):
        os.utime(told, (time.time() + seconds,) * 2)
        callback.on_multirun_start(None)
        assert failures(tmp_path / "s", callback.since) == failed


def test_a_sweep_over_where_and_how_has_a_folder_for_every_job(tmp_path):
    """`-m` may stand at the end, behind options."""
    words = [w for w in TINY if not w.startswith("trainer.threads")]
    swept = "trainer.threads=1,2"
    result = cli("train.py", *words, swept, "compressor=twn", "schedule=smoke", "sweep=s", "-m", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reports = list((tmp_path / "multirun" / "s").glob("*/report.json"))
    assert len(reports) == 2 and "nothing to do" not in result.stdout


def test_a_compiled_network_trains(configuration, tmp_path, monkeypatch, plain_page):
    """torch's compiled modules have no length: whatever asks for their truth raises."""
    called = []

    class Compiled:
        def __init__(self, net: nn.Module) -> None:
            self.net = net

        def __len__(self) -> int:
            raise TypeError(f"{type(self.net).__name__} does not support len()")

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            called.append(len(images))
            return self.net(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    options = ["compressor=twn", "model=lenet5", *TINY_DATA, "dataset.image_size=28", "schedule=smoke"]
    files = [(tmp_path / name / "model.sparsign") for name in ("compiled", "plain")]
    for path, compiled in zip(files, ("true", "false"), strict=True):
        train.run(configuration(*options, f"trainer.compile={compiled}", "trainer.threads=1"), path.parent)
    assert called and files[0].read_bytes() == files[1].read_bytes()


def test_held_out_accuracy_is_that_of_the_network_that_is_packed(configuration, tmp_path, plain_page):
    """Not that of the last epoch: here a prune stage of none comes after it."""
    config = configuration(
        *TINY, "schedule=smoke", "schedule.pretrain.epochs=2", "schedule.finetune.epochs=0", "compressor.pfr=0.6",
        "compressor.layer_cap=0.9", "compressor.min_filters=2", "dataset.limit=300", "dataset.val_fraction=0.5",
    )  # fmt: skip
    report = train.run(config, tmp_path / "run")
    packed, right = sparsign.load(tmp_path / "run" / "model.sparsign", "reference"), []
    for images, labels in build.data(config).val_dataloader():
        right += (packed(images).argmax(1) == labels).tolist()
    rows = [row["val_top1"] for row in RunFolder(tmp_path / "run").read_metrics() if "val_top1" in row]
    assert report["accuracy"]["val_top1"] == pytest.approx(sum(right) / 150) and len(right) == 150
    assert report["accuracy"]["val_top1"] != rows[-1]


def test_a_proof_that_says_different_is_an_error(finished, tmp_path, configuration):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    report = json.loads((folder / "report.json").read_text())
    report["reload"]["identical_predictions"] = False
    (folder / "report.json").write_text(json.dumps(report))
    config = configuration(*TINY, "schedule=smoke", "schedule.pretrain.epochs=3", f"resume={folder}")
    with pytest.raises(ValueError, match="predictions are DIFFERENT"):
        train.run(config, folder)


def test_a_run_can_start_from_another(finished, configuration, tmp_path, plain_page):
    """The shared pretrain stage and what follows it alone give the bits of the run that did both."""
    config = configuration(*TINY, "schedule=smoke", "schedule.pretrain.epochs=3", f"model.pretrained={finished}")
    report = train.run(config, tmp_path / "run")
    theirs = json.loads((finished / "report.json").read_text())
    assert report["accuracy"] == theirs["accuracy"] and report["structure"] == theirs["structure"]
    told = yaml.safe_load((tmp_path / "run" / "stages.yaml").read_text())["stages"][0]
    assert told["epochs"] == 0 and len(told["weights"]) == 64


@pytest.mark.parametrize("words", [["train.py", "--help"], ["train.py", "compressor.pfr=2"], ["evaluate.py", "run=no"]])
def test_lightning_is_imported_only_to_train(words, tmp_path):
    code = "import runpy, sys; sys.argv = sys.argv[1:]\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print(*(m for m in ('pytorch_lightning', 'lightning_fabric', 'torchmetrics') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code, str(ROOT / words[0]), *words[1:]], cwd=tmp_path,
                            capture_output=True, text=True)  # fmt: skip
    assert result.stdout.splitlines()[-1] == "", result.stdout[-300:]


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
    assert len(list((tmp_path / "multirun" / "pair" / "pretrain").iterdir())) == 2  # one entry: checkpoint and account
    assert [p.parent for p in (tmp_path / "multirun" / "pair").rglob("pretrain_from.json")] == [packed[1].parent]
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


def test_a_checkout_on_the_path_without_an_installation_packs_as_well(configuration, tmp_path, monkeypatch, plain_page):
    told = origin.code()
    monkeypatch.setattr(origin, "code", lambda: told | {"sparsign": None})
    options = ("compressor=bnn", *TINY, "schedule=smoke", "schedule.pretrain.epochs=1")
    train.run(configuration(*options), tmp_path)
    meta = read(tmp_path / "model.sparsign").meta
    assert "sparsign" not in meta and meta["compressor"]["name"] == "bnn"
