"""Every shipped experiment goes through all its stages on a few images, and says in its header what it reproduces."""

import re
from pathlib import Path

import pytest
import yaml

from sparsign import train
from sparsign.papers.experiments import load_experiment
from sparsign.papers.targets import METRICS, load_targets, number, reported
from tests.conftest import TINY_DATA
from tests.test_matrix import ONE_EPOCH, size_of

FOLDER = Path(__file__).parent.parent / "configs" / "experiment"
TARGETS = load_targets()[1]
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_there_are_experiments_for_all_four_papers():
    assert {name.split("_")[0] for name in EXPERIMENTS} >= {"stq", "ptq", "wpc", "admm"}


def header(name):
    """word -> the rest of its first line, of the comment on top."""
    lines = re.findall(r"^# (\w+) +(.*)$", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE)
    return dict(reversed(lines))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_names_target_command_and_what_was_measured(name):
    found = header(name)
    assert found["command"] == f"python train.py experiment={name}" or f"experiment={name} " in found["command"]
    assert found["measured"]
    if found["target"].split(":")[0].split(" ")[0] == "none":
        assert "reports" not in found
        return
    identity, _, where = found["target"].partition(", ")
    target = TARGETS[identity]
    said = reported(target)
    if where == "before pruning":
        said = f"{METRICS['top1_before'][0]} {number(target.values['top1_before'], 'top1_before')}"
    else:
        assert not where or re.fullmatch(r"after (prune|quantize|finetune)(-\d+)?", where)
    assert found["reports"] == f"{said} ({target.certainty})"


def dataset_of(name):
    """What an experiment says of its data set, on top of the one that it goes on from."""
    said = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    base = said["defaults"][0]
    return (dataset_of(base) if isinstance(base, str) else {}) | said.get("dataset", {})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_of_papers_train_on_all_of_train_and_say_so(name):
    held_out = dataset_of(name).get("val_fraction")
    row = not header(name)["target"].startswith("none")
    assert (held_out == 0) is row and ("all of train" in header(name).get("data", "")) is row


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_packs(name, configuration, tmp_path, plain_page, thin, two_layers):
    model = load_experiment(FOLDER / f"{name}.yaml").model
    thin(model)
    size = f"dataset.image_size={size_of(model)}"
    one_rho = ["compressor.rhos=[0.1]"] if name.startswith("admm") else []  # ten stages more do the same again
    config = configuration(f"experiment={name}", *TINY_DATA, *ONE_EPOCH, *one_rho, size, "model.pretrained=null")
    report = train.run(config, tmp_path / "run")
    assert report["reload"]["identical_predictions"] is True
    assert report["size"]["packed_bytes"] < report["size"]["float_bytes"]
