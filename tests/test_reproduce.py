"""Rows of the papers by one command: which there are, what they cost, how each is run or gone on with."""

import pytest

from sparsign.papers import reproduce
from sparsign.papers.__main__ import main
from sparsign.papers.experiments import load_experiments
from sparsign.papers.ledger import load_ledger
from sparsign.papers.targets import load_targets

EXPERIMENTS = load_experiments()
LENET = next(e for e in EXPERIMENTS if e.name == "admm_lenet5_mnist_71x")


def test_every_experiment_names_a_known_target_and_data_set_or_none():
    assert all(e.target == "" or e.target in load_targets()[1] for e in EXPERIMENTS)
    assert all(e.dataset in reproduce.TRAIN_IMAGES for e in EXPERIMENTS)


def test_rows_are_chosen_by_the_beginning_or_a_pattern_of_name_or_target():
    assert {e.model for e in reproduce.choose(EXPERIMENTS, "*lenet5*")} == {"lenet5"}
    assert LENET in reproduce.choose(EXPERIMENTS, "admm_lenet5", dataset="mnist")
    with pytest.raises(ValueError, match="nope: no experiment begins so"):
        reproduce.choose(EXPERIMENTS, "nope")
    with pytest.raises(ValueError, match="--dataset cifar10: admm_lenet5 has none on it; expected mnist"):
        reproduce.choose(EXPERIMENTS, "admm_lenet5", dataset="cifar10")


def test_state_tells_a_full_run_of_the_ledger_from_a_short_one_and_from_folders(tmp_path):
    full = next(row for row in load_ledger() if row["run"] == "admm_lenet5_71x_full")
    short = full | {"command": full["command"] + " schedule.pretrain.epochs=2"}
    assert reproduce.state(LENET, [full], tmp_path).startswith("in the ledger: 99.17 %")
    assert reproduce.state(LENET, [short], tmp_path) == "missing"
    (tmp_path / LENET.name).mkdir()
    for name, word in (("config.yaml", "begun"), ("report.json", "finished")):
        (tmp_path / LENET.name / name).touch()
        assert reproduce.state(LENET, [], tmp_path).startswith(word)


def test_a_begun_row_is_gone_on_with(tmp_path):
    folder = tmp_path / LENET.name
    assert f"hydra.run.dir={folder}" in reproduce.command(LENET, tmp_path)
    folder.mkdir()
    (folder / "config.yaml").touch()
    words = reproduce.command(LENET, tmp_path, ["trainer.threads=1"])
    assert f"resume={folder}" in words and words[-1] == "trainer.threads=1"


def test_the_forecast_is_all_epochs_at_the_measured_speed():
    told = reproduce.of([{"epochs": 40}, {"epochs": 8}, {"epochs": 12}], images_per_s=1000.0, images=60_000)
    assert told.epochs == 60 and told.hours == pytest.approx(1.0)


def test_a_run_that_cannot_start_is_told_with_its_own_last_line():
    with pytest.raises(ValueError, match=r"admm_lenet5_mnist_71x: error: .*nowhere"):
        reproduce.forecast(LENET, ["dataset.root=/nowhere"])


def test_a_failed_forecast_is_told_whole_and_fails_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(
            ["reproduce", "admm_lenet5_mnist_348x", "--runs", "/nonexistent", "--forecast", "--root", "/nowhere/at/all"]
        )
    assert "1 of 1 forecasts failed: admm_lenet5_mnist_348x" in str(end.value.code)
    assert "there is no folder /nowhere/at" in " ".join(capsys.readouterr().out.split())


def test_the_list_says_how_many_are_missing(capsys):
    main(["reproduce", "admm_lenet5_mnist_348x", "--runs", "/nonexistent"])
    assert "1 of 1 are missing" in capsys.readouterr().out
