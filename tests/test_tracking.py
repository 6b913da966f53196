"""Trackers: a table whose columns grow, and W&B's calls on a module that stands in for it."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsign import train
from sparsign.pipeline.tracking import CsvTracker, WandbTracker, numbers
from tests.conftest import TINY_DATA

ROWS = [
    {"stage": "pretrain", "epoch": 0, "loss": 2.5, "hist": [1.0, 2.0]},
    {"stage": "pretrain", "test_top1": 0.5},
    {"stage": "finetune", "epoch": 0, "loss": 1.5, "pfr": 0.4, "hist": [3.0]},
]


def test_csv_has_all_rows_under_columns_that_grow(tmp_path):
    tracker = CsvTracker(project="unused")
    tracker.open(tmp_path, {}, None)
    for count, row in enumerate(ROWS, start=1):
        tracker.row(row)
        with (tmp_path / "metrics.csv").open(newline="") as f:
            table = list(csv.DictReader(f))
        assert len(table) == count
        for found, told in zip(table, ROWS, strict=False):
            assert {k: v for k, v in found.items() if v} == {k: str(v) for k, v in told.items() if k != "hist"}
    assert list(table[0]) == ["stage", "epoch", "loss", "test_top1", "pfr"]
    assert not list(tmp_path.glob("*.part"))
    tracker.summary({}, tmp_path / "model.sparsign")
    tracker.close(failed=False)


def test_numbers_are_the_numeric_leaves_with_dotted_names():
    tree = {"a": 1, "b": {"c": 0.5, "d": {"e": 2, "f": "text"}, "g": [1, 2], "h": None}}
    assert numbers(tree) == {"a": 1, "b.c": 0.5, "b.d.e": 2}


class Wandb(SimpleNamespace):
    """Takes down what a job does with W&B. Its server keeps the number of rows of every run."""

    def __init__(self, key: str | None = None) -> None:
        self.runs, self.server = [], {}
        self.api = SimpleNamespace(api_key=key)
        self.Settings = lambda **settings: settings
        self.Histogram = lambda values: ("histogram", values)
        self.Artifact = lambda name, type: SimpleNamespace(name=name, type=type, files=[], add_file=None)

    def init(self, **given) -> SimpleNamespace:
        steps = self.server.get(given["id"], 0) if given["resume"] else 0
        run = SimpleNamespace(
            given=given, id=given["id"], starting_step=steps, rows=[], summary={}, codes=[], artifacts=[]
        )

        def log(row: dict) -> None:
            run.rows.append(row)
            self.server[run.id] = run.starting_step + len(run.rows)

        def log_artifact(artifact) -> None:
            run.artifacts.append(artifact)

        run.log, run.log_artifact = log, log_artifact
        run.finish = lambda exit_code: run.codes.append(exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return fake


def opened(folder: Path, mode: str = "online") -> WandbTracker:
    tracker = WandbTracker("sparsign", None, mode, ["ternary"])
    tracker.open(folder, {"seed": 0}, "sweep1")
    return tracker


def test_one_run_per_job_with_config_group_and_tags(wandb, tmp_path):
    opened(tmp_path / "job")
    given = wandb.runs[0].given
    assert (given["project"], given["group"], given["name"], given["tags"]) == (
        "sparsign",
        "sweep1",
        "job",
        ["ternary"],
    )
    assert given["config"] == {"seed": 0} and given["dir"] == tmp_path / "job"


def test_mode_auto_is_online_only_with_a_key(wandb, tmp_path, monkeypatch):
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "offline" and wandb.runs[-1].given["resume"] is None
    monkeypatch.setenv("WANDB_API_KEY", "k")
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "online" and wandb.runs[-1].given["resume"] == "allow"
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.api.api_key = "from netrc"
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "online"


def test_rows_are_named_by_stage_and_lists_become_histograms(wandb, tmp_path):
    tracker = opened(tmp_path)
    for row in ROWS:
        tracker.row(row)
    assert wandb.runs[0].rows == [
        {"pretrain/epoch": 0, "pretrain/loss": 2.5, "pretrain/hist": ("histogram", [1.0, 2.0])},
        {"pretrain/test_top1": 0.5},
        {"finetune/epoch": 0, "finetune/loss": 1.5, "finetune/pfr": 0.4, "finetune/hist": ("histogram", [3.0])},
    ]


def test_resumed_job_goes_on_in_its_run_and_tells_no_row_twice(wandb, tmp_path):
    tracker = opened(tmp_path)
    for row in ROWS[:2]:
        tracker.row(row)
    tracker.close(failed=True)
    again = opened(tmp_path)
    for row in ROWS:  # a resumed job tells what metrics.jsonl holds, then goes on
        again.row(row)
    first, second = wandb.runs
    assert first.id == second.id == (tmp_path / "wandb_id").read_text()
    assert len(first.rows) == 2 and [next(iter(r)) for r in second.rows] == ["finetune/epoch"]
    opened(tmp_path / "other")
    assert wandb.runs[-1].id != first.id


def test_offline_run_holds_all_rows_after_resuming(wandb, tmp_path):
    for count in (2, 3):
        tracker = opened(tmp_path, "offline")
        for row in ROWS[:count]:
            tracker.row(row)
    assert [len(run.rows) for run in wandb.runs] == [2, 3]


def test_summary_has_the_reports_numbers_and_the_packed_file(wandb, tmp_path):
    added = []
    wandb.Artifact = lambda name, type: SimpleNamespace(name=name, type=type, add_file=added.append)
    tracker = opened(tmp_path)
    report = {"size": {"packed_bytes": 12, "codec": "rans"}, "accuracy": {"top1": 0.9}, "layers": [{"name": "conv1"}]}
    tracker.summary(report, tmp_path / "model.sparsign")
    run = wandb.runs[0]
    assert run.summary == {"size.packed_bytes": 12, "accuracy.top1": 0.9}
    assert added == [str(tmp_path / "model.sparsign")]
    assert run.artifacts[0].name == f"packed-{run.id}" and run.artifacts[0].type == "model"


@pytest.mark.parametrize("failed, code", [(True, 1), (False, 0)])
def test_close_finishes_the_run_with_an_exit_code(wandb, tmp_path, failed, code):
    opened(tmp_path).close(failed)
    assert wandb.runs[0].codes == [code]
    WandbTracker("sparsign", None, "offline", []).close(failed=True)  # never opened: nothing to finish
    assert len(wandb.runs) == 1


@pytest.mark.parametrize("error, raised", [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_failed_job_finishes_its_run_as_failed(wandb, configuration, tmp_path, monkeypatch, error, raised):
    def broken(*_):
        raise error("in the middle of a stage")

    monkeypatch.setattr(train, "run_stages", broken)
    with pytest.raises(raised):
        train.run(configuration("logger=wandb", "logger.mode=offline", *TINY_DATA), tmp_path / "run")
    assert [run.codes for run in wandb.runs] == [[1]]
