"""Networks, data sets and methods outside of the repository: `tests/plugin_example` installed, or named on the line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsign.configs import members
from sparsign.packing.file import read
from sparsign.pipeline import plugins

EXAMPLE = Path(__file__).parent / "plugin_example"
COMMANDS = """
import sys
from sparsign import evaluate, train
from sparsign.evaluation import report
from sparsign.reports import files
report.compressed_code_bytes = lambda _: dict.fromkeys(("packed", "gzip", "xz"), 0)  # seconds, tested elsewhere
files.render = lambda *_: ""
picked = ["compressor=keep_largest", "model=narrow", "dataset=stripes"]
sys.argv[1:] = [*picked, "--help"]
train.command()
sys.argv[1:] = [*picked, "compressor.density=0.4", "model.options.width=8", "dataset.options.width=3",
                "schedule=short", "latency.seconds=0.1", "trainer.progress=false", "hydra.run.dir=run"]
train.command()
sys.argv[1:] = ["packed=run/model.sparsign", "output=elsewhere", "latency.seconds=0"]
evaluate.command()
"""


def test_an_installed_package_brings_network_data_set_and_method(tmp_path):
    installed = tmp_path / "outside-1.0.dist-info"
    installed.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{plugins.GROUP}]\noutside = outside\n")
    paths = os.pathsep.join([str(tmp_path), str(EXAMPLE), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for told in ("keep_largest", "narrow", "stripes"):
        assert f"={told}" in done.stdout and f" {told} " in done.stdout.split("== What")[0]
    assert "compressor.density=0.5 " in done.stdout and "(0, 1]" in done.stdout
    meta = read(tmp_path / "run" / "model.sparsign").meta
    assert (meta["model"]["name"], meta["model"]["options"]) == ("narrow", {"width": 8})
    assert (
        meta["dataset"]["name"] == "stripes"
        and meta["dataset"]["options"] == {"width": 3}
        and "outside" not in json.dumps(meta)
    )
    assert meta["dataset"]["class_names"] == ["lying", "standing", "leaning"]
    report, again = (json.loads((tmp_path / f / "report.json").read_text()) for f in ("run", "elsewhere"))
    assert report["accuracy"]["top1"] == again["accuracy"]["top1"] > 0.6
    assert report["reload"]["bit_equal"] and again["reload"]["bit_equal"] and again["accuracy"]["images"] == 60
    assert 0.55 < report["structure"]["pfr"] < 0.65  # weights left out, of the density 0.4
    assert {row["engine"] for row in report["speed"]} > {"torch fp32"}  # its float network, built from its name
    code = yaml.safe_load((tmp_path / "run" / "stages.yaml").read_text())["code"][0]
    assert len(code["plugin outside"]) == 12


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """A folder of configs to name on the command line; what is registered is forgotten again."""
    for module, name in ((members, "FOLDERS"), (plugins.models, "OUTSIDE"), (plugins.datasets, "OUTSIDE")):
        monkeypatch.setattr(module, name, type(getattr(module, name))(getattr(module, name)))
    monkeypatch.setenv(plugins.ASKED, "")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "compressor").mkdir()
    yield tmp_path / "mine"
    members.targets.cache_clear()


@pytest.mark.parametrize("spelled", ["--config-dir {}", "-cd {}", "--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_a_folder_is_named_on_the_command_line(command_line, spelled):
    (command_line / "model" / "mine.yaml").write_text("_target_: elsewhere.mine\nname: mine\n")
    arguments = spelled.format(command_line).split()
    rest = plugins.from_arguments([*arguments, "model=mine", "-m"])
    assert rest == ([] if arguments[0].startswith("-") else arguments) + ["model=mine", "-m"]
    plugins.register()
    assert plugins.models.path("mine") == "elsewhere.mine" and "mine" in members.names("model")
    assert members.targets("model")["mine"] == "elsewhere.mine"


@pytest.mark.parametrize("words", [["-c", "job"], ["--cfg", "job"]])
def test_hydras_words_are_left_to_it(words):
    assert plugins.from_arguments(["model=nin", *words]) == ["model=nin", "--cfg", "job"]


def test_what_a_plugin_does_wrong_is_named_in_one_line(command_line):
    with pytest.raises(ValueError, match=r"^--config-dir nowhere: expected a folder laid out as configs/$"):
        plugins.from_arguments(["--config-dir", "nowhere"])
    plugins.from_arguments(["--config-dir", str(command_line)])
    wrong = {
        "compressor/mine.yaml: _target_=nowhere.Mine cannot be imported (": "_target_: nowhere.Mine",
        "compressor/mine.yaml: _target_=pathlib.Path: expected a subclass of": "_target_: pathlib.Path",
    }
    for said, text in wrong.items():
        (command_line / "compressor" / "mine.yaml").write_text(text)
        with pytest.raises(ValueError) as caught:
            plugins._register(command_line)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    (command_line / "compressor" / "mine.yaml").unlink()
    (command_line / "model" / "resnet18.yaml").write_text("_target_: a.b\n")
    with pytest.raises(ValueError, match=r"model/resnet18\.yaml: model=resnet18 is there already; expected another"):
        plugins.register()
