"""A pretrain stage that runs have in common: trained once, and the bits of a run that takes it are those of one that
did not."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from rich.console import Console

from sparsign import train
from sparsign.compressors.admm import ADMM
from sparsign.compressors.ec2t import EC2T
from sparsign.compressors.msf import MSF
from sparsign.compressors.ptq import PTQ
from sparsign.compressors.stq_a import STQA
from sparsign.compressors.subsidiary import Subsidiary
from sparsign.compressors.ttq import TTQ
from sparsign.compressors.twn import TWN
from sparsign.compressors.wpc import WPC
from sparsign.datamodules.splits import Split
from sparsign.pipeline.folder import RunFolder, load_plain
from sparsign.pipeline.shared import Entry, contents
from sparsign.pipeline.stages import prepare, run_stages
from sparsign.pipeline.tracking import NoTracker
from tests.conftest import TINY_DATA
from tests.test_matrix import ONE_EPOCH
from tests.tiny import TinyImages

OTHERS = {  # of every option that is said to act after pretraining alone, another value
    "stq_a": {"pfr": 0.2, "layer_cap": 0.5, "min_filters": 2, "exempt_layers": 2},
    "ptq": {"pfr": 0.5, "start_ratio": 0.1, "ramp": 0.9, "estimator": "R3", "lambda_": 0.5, "lambda_ramp": 0,
            "reinit": True},
    "wpc": {"penalty_kind": "lasso", "unpenalised": "[conv2]", "lambda_": 0.5, "clip_ratio": 0.2,
            "order": "ternarise_then_prune", "tolerance": 0.1, "finetune": True},
    "admm": {"structure": "irregular", "pfr": 0.6, "ratios": "{conv2: 0.7}", "rounds": 2, "rhos": "[1.0]",
             "rho_growth": 1.5, "interval": 3, "purify": False, "purify_emptiness": 0.2, "purify_share": 0.5,
             "quantize": "bits", "bits": 2, "layer_bits": "{fc1: 3}", "one_sided": True, "freeze": 0.7},
    "msf": {"pfr": 0.5},
    "subsidiary": {"alpha_s": 0.1, "min_filters": 2},
    "ttq": {"t": 0.2, "zeros": 0.3, "init": "one"},
    "twn": {"per_filter": True},
    "ec2t": {"lambda_": 0.3, "init": 0.9},
}  # fmt: skip
METHODS = {"stq_a": STQA, "ptq": PTQ, "wpc": WPC, "admm": ADMM, "msf": MSF, "subsidiary": Subsidiary, "ttq": TTQ,
           "twn": TWN, "ec2t": EC2T}  # fmt: skip


@pytest.fixture
def composed(configuration):
    def make(method: str, *overrides: str):
        binary = method in ("stq_a", "msf", "subsidiary")
        model, size = ("resnet20", 16) if binary else ("lenet5", 28)
        few = ["compressor.rhos=[0.1]"] if method == "admm" else []
        return configuration(
            f"compressor={method}", f"model={model}", *TINY_DATA, *ONE_EPOCH, f"dataset.image_size={size}",
            "trainer.threads=1", *few, *overrides,
        )  # fmt: skip

    return make


def pretrained(config, folder, cache=None):
    """(key of the pretrain stage, its state, its metrics rows without the clock) after that stage alone."""
    run = prepare(config, RunFolder(folder), cache)
    key = Entry(folder, contents(run, run.plan[0])).key
    run.plan = run.plan[:1]
    run_stages(run, NoTracker(), Console(quiet=True))
    rows = [{k: v for k, v in row.items() if k != "images_per_s"} for row in run.folder.read_metrics()]
    return key, load_plain(run.folder.boundary("pretrain"))["model"], rows


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        (v.equal(other[k]) if hasattr(v, "equal") else v == other[k]) for k, v in one.items()
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_said_to_act_later_changes_no_bit_of_the_pretrain_stage(method, composed, tmp_path):
    named = set(METHODS[method].AFTER_PRETRAIN)
    assert named - {"freeze_rounds"} == set(OTHERS[method]) and named <= {f.name for f in fields(METHODS[method])}
    overrides = [f"{'++' if '{' in str(v) else ''}compressor.{k}={v}" for k, v in OTHERS[method].items()]
    key, state, rows = pretrained(composed(method), tmp_path / "one")
    other_key, other_state, other_rows = pretrained(composed(method, *overrides), tmp_path / "other")
    assert key == other_key and same(state, other_state) and rows == other_rows


def test_what_acts_on_the_pretrain_stage_is_another_entry(composed, tmp_path):
    def key(*overrides: str) -> str:
        run = prepare(composed("stq_a", *overrides), RunFolder(tmp_path))
        return Entry(tmp_path, contents(run, run.plan[0])).key

    own, changes = key(), [
        "compressor.beta=0.5", "compressor.scale=true", "seed=1", "schedule.pretrain.lr=0.02",
        "schedule.pretrain.bn_batches=2", "dataset.batch_size=8", "trainer.precision=bf16", "dataset.limit=40",
        "trainer.channels_last=false", "trainer.kernels=false",
    ]  # fmt: skip
    assert own == key("schedule.finetune.lr=0.02", "compressor.pfr=0.1", "trainer.progress=true")
    others = [key(change) for change in changes]
    assert len({own, *others}) == 1 + len(changes)


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images"])
def test_other_images_under_the_same_root_are_another_entry(part, composed, tmp_path, monkeypatch):
    def key() -> str:
        run = prepare(composed("stq_a"), RunFolder(tmp_path))
        return Entry(tmp_path, contents(run, run.plan[0])).key

    before, read = key(), TinyImages.read

    def negative(self: TinyImages) -> Split:
        split = read(self)
        whole = getattr(split, part)
        return replace(split, **{part: whole.flip(0) if "labels" in part else 255 - whole})

    monkeypatch.setattr(TinyImages, "read", negative)
    assert key() != before


def test_jobs_of_a_sweep_share_their_pretrain_stage_to_the_bit(composed, tmp_path, plain_page, monkeypatch):
    trained = []
    monkeypatch.setattr("sparsign.pipeline.fit.StageBar.on_train_start", lambda self, *_: trained.append(self.title))
    for pfr in (0.2, 0.4):
        train.run(composed("stq_a", f"compressor.pfr={pfr}"), tmp_path / "sweep" / str(pfr), tmp_path / "sweep")
    assert [title.split()[1] for title in trained] == ["pretrain", "finetune", "finetune"]
    train.run(composed("stq_a", "compressor.pfr=0.4"), tmp_path / "alone")
    taken, alone = tmp_path / "sweep" / "0.4", tmp_path / "alone"
    assert (taken / "model.sparsign").read_bytes() == (alone / "model.sparsign").read_bytes()
    stages = [
        [json.loads(row)["stage"] for row in (f / "metrics.jsonl").read_text().splitlines()] for f in (taken, alone)
    ]
    assert stages[0] == stages[1]
    told = json.loads((taken / "pretrain_from.json").read_text())
    assert told["run"] == str(tmp_path / "sweep" / "0.2") and told["seconds"] > 0
    assert json.loads((taken / "timing.json").read_text())["pretrain"] == told["seconds"]
    assert not (tmp_path / "sweep" / "0.2" / "pretrain_from.json").exists()
    assert not list((tmp_path / "sweep" / "pretrain").glob("*.lock"))


def test_who_comes_second_waits_for_the_first(composed, tmp_path):
    """Another process holds the entry: the run says so, waits, and takes what the other has left there meanwhile."""
    config, cache = composed("stq_a"), tmp_path / "cache"
    first = prepare(config, RunFolder(tmp_path / "first"), cache)
    entry = Entry(cache, contents(first, first.plan[0]))
    hold = "import sys; from pathlib import Path; from sparsign.pipeline.lock import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1]), 'it'):\n    print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold, entry.lock], stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "held\n"
    first.plan, first.cache = first.plan[:1], None
    run_stages(first, NoTracker(), Console(quiet=True))
    said = []

    class Listening(Console):
        def print(self, *objects, **_):
            said.append(str(objects[0]))
            if "waiting" in said[-1]:
                entry.keep(first.folder, "pretrain")
                other.stdin.close()

    second = prepare(config, RunFolder(tmp_path / "second"), cache)
    second.plan = second.plan[:1]
    run_stages(second, NoTracker(), Listening())
    assert other.wait() == 0
    assert f"the shared pretrain stage is in use by process {other.pid} on " in said[0] and "taken from" in said[1]
    assert second.folder.boundary("pretrain").read_bytes() == first.folder.boundary("pretrain").read_bytes()


def test_a_damaged_entry_is_named_in_one_line(composed, tmp_path):
    run = prepare(composed("stq_a"), RunFolder(tmp_path / "run"), tmp_path)
    entry = Entry(tmp_path, contents(run, run.plan[0]))
    entry.checkpoint.write_bytes(b"nothing")
    entry.about.write_text('{"rows": 1')
    with pytest.raises(
        ValueError, match=rf"{entry.about.name}: not a shared pretrain stage .* delete it to train again"
    ):
        run_stages(run, NoTracker(), Console(quiet=True))
    entry.about.write_text('{"rows": [], "run": "x", "seconds": 1}')
    with pytest.raises(ValueError, match=rf"^{re.escape(str(entry.checkpoint))}: not a readable checkpoint"):
        run_stages(run, NoTracker(), Console(quiet=True))
    assert not run.folder.boundary("pretrain").exists()
