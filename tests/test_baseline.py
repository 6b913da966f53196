"""`baseline=<run folder>`: the float network that a run of another form is set beside."""

import json

import pytest

from sparsign.evaluation.baseline import float_accuracy
from tests.made_report import a_report


def folder(path, **report):
    path.mkdir()
    (path / "report.json").write_text(json.dumps(a_report(**report)))
    return path


def test_the_float_accuracy_of_a_finished_run(tmp_path):
    assert float_accuracy(folder(tmp_path / "run", float_top1=0.93), "nin", "cifar10") == 0.93


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("vgg11", "cifar10"), "has model=nin, expected vgg11 as in this run"),
        (("nin", "mnist"), "has dataset=cifar10, expected mnist as in this run"),
        (("nin", "cifar10"), "its form is fbin; expected a run that trained a float network"),
    ],
)
def test_another_run_is_refused_by_the_options_name(tmp_path, asked, message):
    run = folder(tmp_path / "run")
    with pytest.raises(ValueError) as error:
        float_accuracy(run, *asked)
    assert str(error.value) == f"baseline={run}: {message}"


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_what_is_no_finished_run_is_refused_by_the_options_name(tmp_path, content):
    if content:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        float_accuracy(tmp_path, "nin", "cifar10")
    assert str(error.value).startswith(f"baseline={tmp_path}: expected the folder of a finished run (")
    assert "\n" not in str(error.value)
