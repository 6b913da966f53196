"""evaluate.py: a packed file from anywhere gets its report, or one line says why not."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from sparsign import evaluate
from sparsign.configs.evaluation import register
from sparsign.evaluation import report
from sparsign.packing.file import write
from sparsign.packing.spec import Node, PackedModel


def config(*overrides):
    register()
    with initialize_config_dir(str(Path(evaluate.__file__).parent / "configs"), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


@pytest.fixture
def run_folder(tmp_path):
    meta = {
        "model": {"name": "tiny"},
        "dataset": {"name": "digits", "mean": [0.172], "std": [0.32]},
        "compressor": {"name": "none", "pfr_unit": "filter"},
    }
    nodes = [Node("input", "input"), Node("avgpool", "pool", ("input",), {"kernel": (8, 8), "stride": (8, 8)})]
    nodes.append(Node("flatten", "flatten", ("pool",)))
    nodes.append(Node("select", "ten", ("flatten",), {}, {"index": np.arange(10)}))
    write(PackedModel(nodes, (1, 32, 32), "ten", meta), tmp_path / "model.sparsign")
    return tmp_path


def test_evaluate_writes_its_report_beside_the_file(run_folder):
    top1 = evaluate.main(config(f"run={run_folder}", "latency.seconds=0", "dataset.limit=50"))
    found = report.read_report(run_folder / "report.json")
    told = {key: value for key, value in found["accuracy"].items() if value is not None}
    assert told.keys() == {"top1", "top5", "images"} and (told["top1"], told["images"]) == (top1, 50)
    assert (run_folder / "report.html").is_file()


def test_evaluate_takes_a_file_from_anywhere_and_writes_where_asked(run_folder, tmp_path):
    output = tmp_path / "elsewhere"
    output.mkdir()
    path = (run_folder / "model.sparsign").rename(tmp_path / "stranger.bin")
    evaluate.main(config(f"packed={path}", f"output={output}", "latency.seconds=0"))
    assert report.read_report(output / "report.json")["packed"] == str(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "run=None, packed=None: expected exactly one of run"),
        (["run=a", "packed=b"], "run=a, packed=b: expected exactly one of run"),
        (["run=no/such/run"], "run=no/such/run: there is no file"),
        (["packed=no.sparsign"], "packed=no.sparsign: there is no file"),
        (["packed=pyproject.toml"], "pyproject.toml: not a packed model"),
        (["run=a", "latency.seconds=-1"], "latency.seconds=-1.0: expected a value in [0, inf)"),
        (["run=a", "dataset.limit=0"], "dataset.limit=0: expected"),
    ],
)
def test_evaluate_refuses_in_one_line(overrides, message, monkeypatch, capsys):
    monkeypatch.chdir(Path(evaluate.__file__).parent)
    with pytest.raises(SystemExit) as raised:
        evaluate.main(config(*overrides))
    assert raised.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_root_of_the_data_comes_from_the_run(tmp_path):
    assert evaluate.root_of_run(tmp_path) == "data"
    (tmp_path / "config.yaml").write_text("dataset: {root: /somewhere}")
    assert evaluate.root_of_run(tmp_path) == "/somewhere"
