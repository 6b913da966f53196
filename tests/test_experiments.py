"""Every shipped experiment goes through all its stages on a few images, and says in its header what it reproduces."""

import re
from pathlib import Path

import pytest

from sparsign import train
from tests.conftest import TINY_DATA
from tests.test_matrix import ONE_EPOCH, size_of

FOLDER = Path(__file__).parent.parent / "configs" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_there_are_experiments_for_all_four_papers():
    assert {name.split("_")[0] for name in EXPERIMENTS} >= {"stq", "ptq", "wpc", "admm"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_names_target_command_and_what_was_measured(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#")).lower()
    for word in ("target", f"experiment={name}", "measured"):
        assert word in header, f"{name}: no {word} in the header"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_packs(name, configuration, tmp_path, plain_page):
    model = re.search(r"override /model: (\w+)", (FOLDER / f"{name}.yaml").read_text())[1]
    size = f"dataset.image_size={size_of(model)}"
    one_rho = ["compressor.rhos=[0.1]"] if name.startswith("admm") else []  # ten stages more do the same again
    config = configuration(f"experiment={name}", *TINY_DATA, *ONE_EPOCH, *one_rho, size, "model.pretrained=null")
    report = train.run(config, tmp_path / "run")
    assert report["reload"]["identical_predictions"] is True
    assert report["size"]["packed_bytes"] < report["size"]["float_bytes"]
