"""Trackers: a table whose columns grow, W&B's calls on a module that stands in for it, real event files and MLflow."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsign import train
from sparsign.pipeline.cli import one_line
from sparsign.pipeline.tracking import CsvTracker, histograms, leaves, measured, title
from sparsign.pipeline.tracking_wandb import WandbTracker
from tests.conftest import TINY_DATA
from tests.made_report import a_report

ROWS = [
    {"stage": "pretrain", "epoch": 0, "loss": 2.5, "gap": [1.0, 2.0], "a_hist": [3.0, 1.0], "a_hist_range": [-1, 1]},
    {"stage": "pretrain", "test_top1": 0.5},
    {"stage": "finetune", "epoch": 0, "loss": 1.5, "pfr": 0.4, "gap": [3.0]},
]
NAMES = {"compressor": "bnn", "model": "nin", "dataset": "cifar10"}
CONFIG = {"seed": 3} | {k: {"name": n} for k, n in NAMES.items()}


def test_csv_has_all_rows_under_columns_that_grow(tmp_path):
    tracker = CsvTracker(project="unused")
    tracker.open(tmp_path, {}, None)
    for count, row in enumerate(ROWS, start=1):
        tracker.row(row)
        with (tmp_path / "metrics.csv").open(newline="") as f:
            table = list(csv.DictReader(f))
        assert len(table) == count
        for found, told in zip(table, ROWS, strict=False):
            assert {k: v for k, v in found.items() if v} == {k: str(v) for k, v in told.items() if type(v) is not list}
    assert list(table[0]) == ["stage", "epoch", "loss", "test_top1", "pfr"]
    assert not list(tmp_path.glob("*.part"))
    tracker.summary({}, tmp_path / "model.sparsign")
    tracker.close(failed=False)


def test_leaves_are_numbers_and_texts_with_their_paths():
    tree = {"a": 1, "b": {"c": 0.5, "d": {"e": 2, "f": "text"}, "g": [1, 2], "h": None}}
    assert leaves(tree) == {"a": 1, "b/c": 0.5, "b/d/e": 2, "b/d/f": "text"}


def test_histograms_have_their_edges():
    assert list(histograms(ROWS[0])) == [("a_hist", [3.0, 1.0], [-1.0, 0.0, 1.0])]
    assert list(histograms(ROWS[1])) == []


def test_latency_rows_and_the_processor_are_among_what_was_measured():
    told = measured(a_report())
    assert told["environment/cpu"] and told["environment/isa"] and told["size/packed_bytes"] == 1000
    rows = {row["engine"]: row for row in a_report()["speed"] if row["batch"] == 1}
    for engine, row in rows.items():
        assert told[f"speed/{engine}/batch1_threads1/milliseconds"] == row["milliseconds"]
    (ours,) = (row for engine, row in rows.items() if not engine.startswith("torch "))
    assert (told["latency/engine"], told["latency/milliseconds"]) == (ours["engine"], ours["milliseconds"])
    assert "latency/engine" not in measured(a_report() | {"speed": []})


def test_names_of_runs_say_what_was_run():
    dated = Path("runs/x/2026-11-25_10-00-00_ab12cd")
    assert title(dated, CONFIG, None) == "bnn nin cifar10 seed-3"
    assert title(Path("runs/mine"), CONFIG, None) == "bnn nin cifar10 mine"
    assert title(Path("multirun/s/pfr-0.2__seed-3"), CONFIG, "s") == "bnn nin cifar10 pfr-0.2__seed-3"


class Wandb(SimpleNamespace):
    """Takes down what a job does with W&B. Its server keeps the number of rows of every run."""

    def __init__(self) -> None:
        self.runs, self.server = [], {}
        self.Settings = lambda **settings: SimpleNamespace(base_url="https://wandb.example:8080", **settings)
        self.Histogram = lambda values=None, np_histogram=None: ("histogram", values, np_histogram)
        self.Table = lambda columns, data: SimpleNamespace(columns=columns, data=data)
        self.Html = lambda path: ("page", path)
        self.Artifact = self.artifact

    @staticmethod
    def artifact(name: str, type: str) -> SimpleNamespace:
        files = []
        return SimpleNamespace(name=name, type=type, files=files, add_file=lambda path: files.append(Path(path).name))

    def init(self, **given) -> SimpleNamespace:
        steps = self.server.get(given["id"], 0) if given["resume"] else 0
        run = SimpleNamespace(
            given=given, id=given["id"], starting_step=steps, rows=[], summary={}, codes=[], artifacts=[],
            offline=given["mode"] == "offline", dir=f"{given['dir']}/wandb/offline-run-1/files",
        )  # fmt: skip

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
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    return fake


def opened(folder: Path, mode: str = "online") -> WandbTracker:
    tracker = WandbTracker("sparsign", None, mode, ["ternary"])
    tracker.open(folder, CONFIG, "sweep1")
    return tracker


def test_one_run_per_job_with_config_group_and_tags(wandb, tmp_path):
    opened(tmp_path / "job")
    given = wandb.runs[0].given
    assert (given["project"], given["group"], given["name"], given["tags"]) == (
        "sparsign",
        "sweep1",
        "bnn nin cifar10 job",
        ["ternary"],
    )
    assert given["config"] == CONFIG and given["dir"] == tmp_path / "job"


def test_mode_auto_is_online_only_with_a_key(wandb, tmp_path, monkeypatch):
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "offline" and wandb.runs[-1].given["resume"] is None
    monkeypatch.setenv("WANDB_API_KEY", "k")
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "online" and wandb.runs[-1].given["resume"] == "allow"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine wandb.example login user password k\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    opened(tmp_path, "auto")
    assert wandb.runs[-1].given["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")  # what W&B's own variable says goes before the guess
    opened(tmp_path, "auto")
    opened(tmp_path, "online")
    assert [run.given["mode"] for run in wandb.runs[-2:]] == ["disabled", "online"]


def test_rows_are_named_by_stage_and_lists_become_histograms(wandb, tmp_path):
    tracker = opened(tmp_path)
    for row in ROWS:
        tracker.row(row)
    assert wandb.runs[0].rows == [
        {"pretrain/epoch": 0, "pretrain/loss": 2.5, "pretrain/gap": ("histogram", [1.0, 2.0], None),
         "pretrain/a_hist": ("histogram", None, ([3.0, 1.0], [-1.0, 0.0, 1.0]))},
        {"pretrain/test_top1": 0.5},
        {"finetune/epoch": 0, "finetune/loss": 1.5, "finetune/pfr": 0.4, "finetune/gap": ("histogram", [3.0], None)},
    ]  # fmt: skip


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


def test_summary_has_the_reports_numbers_and_the_files_are_artifacts(wandb, tmp_path):
    for name in ("model.sparsign", "report.json", "report.html"):
        (tmp_path / name).write_text("x")
    opened(tmp_path).summary(a_report(), tmp_path / "model.sparsign")
    run = wandb.runs[0]
    assert run.summary == measured(a_report())
    told = run.rows[-1]
    assert told["final/pfr"] == 0.25 and told["report"] == ("page", str(tmp_path / "report.html"))
    assert told["layers"].data[0][:3] == ["conv1", 8, 75.0] and len(told["layers"].columns) == 5
    assert {a.name: a.files for a in run.artifacts} == {
        f"model-{run.id}": ["model.sparsign"],
        f"report-{run.id}": ["report.html", "report.json"],
    }


def test_an_offline_run_says_how_to_send_it(wandb, tmp_path, capsys):
    opened(tmp_path, "offline").close(failed=False)
    assert capsys.readouterr().out.endswith(f"wandb sync {tmp_path}/wandb/offline-run-1\n")
    opened(tmp_path, "online").close(failed=False)
    assert capsys.readouterr().out == ""


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


# -- other trackers, for real where their packages are -----------------------------------------------------------------


def test_tensorboard_event_files_hold_numbers_and_histograms(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from sparsign.pipeline.tracking_tensorboard import TensorBoardTracker

    for count in (1, 3):  # a resumed run tells all rows again
        tracker = TensorBoardTracker(project="unused")
        tracker.open(tmp_path, CONFIG, None)
        for row in ROWS[:count]:
            tracker.row(row)
        tracker.summary(a_report(), tmp_path / "model.sparsign")
        tracker.close(failed=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == [(0, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("finetune/loss")] == [(2, 1.5)]
    assert events.Scalars("final/size/packed_bytes")[0].value == 1000
    (kept,) = events.Histograms("pretrain/a_hist")
    assert sum(kept.histogram_value.bucket) == kept.histogram_value.num == 4


def test_mlflow_run_goes_on_after_resuming(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from sparsign.pipeline.tracking_mlflow import MlflowTracker

    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts below the working directory
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "model.sparsign").write_text("x")
    for count in (1, 3):
        tracker = MlflowTracker("sparsign", ["ternary"], uri)
        tracker.open(tmp_path, CONFIG, "sweep1")
        for row in ROWS[:count]:
            tracker.row(row)
        tracker.summary(a_report(), tmp_path / "model.sparsign")
        tracker.close(failed=count == 1)
    (run,) = mlflow.MlflowClient(uri).search_runs([mlflow.get_experiment_by_name("sparsign").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == f"bnn nin cifar10 {tmp_path.name}"
    assert run.data.metrics["finetune/loss"] == 1.5 and run.data.metrics["size/packed_bytes"] == 1000
    assert run.data.params["compressor/name"] == "bnn" and run.data.tags["sweep"] == "sweep1"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, configuration, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Exception) as caught:
        train.run(configuration(f"logger={name}", *TINY_DATA), tmp_path / "run")
    assert f"logger={name} needs {name} (" in one_line(caught.value)
    assert one_line(caught.value).endswith(f'pip install "sparsign[{name}]"') and not (tmp_path / "run").exists()
