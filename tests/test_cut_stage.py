"""`schedule.<kind>.cut`: what training goes on with is smaller; what comes out is told of the uncut network."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from sparsign import train
from sparsign.packing.file import read
from sparsign.pipeline import build
from sparsign.pipeline.checkpoints import MidStageCheckpoint
from sparsign.pipeline.cut import cut_network
from sparsign.pipeline.folder import RunFolder, load_plain
from sparsign.pipeline.plan import resolve
from sparsign.pipeline.stages import load_finished, prepare, run_stages
from sparsign.pipeline.tracking import NoTracker
from tests.conftest import TINY_DATA
from tests.test_matrix import ONE_EPOCH, size_of

CUT = "schedule.prune.cut=true"
NETWORKS = {
    "resnet20": [
        "compressor=stq_a", "model=resnet20", "model.options.block=plain", "compressor.float_layers=[first,last]"
    ],
    "vgg11": ["compressor=stq_a", "model=vgg11", "model.options.order=norm_first"],
    "wbin": ["compressor=stq_a", "compressor.form=wbin", "model=vgg11"],
    "admm": ["compressor=admm", "model=lenet5", "compressor.rhos=[0.1]"],
}  # fmt: skip


@pytest.fixture
def composed(configuration, thin):
    thinned = []

    def make(network: str, *overrides: str):
        words = NETWORKS[network]
        model = next(word.removeprefix("model=") for word in words if word.startswith("model="))
        if not thinned:
            thin(model)
            thinned.append(model)
        few = ["compressor.min_filters=1"] if "stq_a" in words[0] else []
        size = f"dataset.image_size={size_of(model)}"
        return configuration(*words, *few, *TINY_DATA, *ONE_EPOCH, size, "trainer.threads=1", *overrides)

    return make


@pytest.mark.parametrize("network", NETWORKS)
def test_without_training_after_it_the_file_is_the_same(network, composed, tmp_path, plain_page):
    """The same answers, kept rows, columns and codes, and the same counts of the uncut network.

    Sums of floats may be taken in another order: in a float head, or in the scale of a layer on its levels.
    """
    untrained = ["schedule.finetune.epochs=0", "schedule.quantize.epochs=0"]
    whole = train.run(composed(network, *untrained), tmp_path / "whole")
    small = train.run(composed(network, *untrained, CUT), tmp_path / "cut")
    assert small["reload"]["identical_predictions"] is True
    assert small["accuracy"] == whole["accuracy"]
    assert small["structure"] == whole["structure"] and small["structure"]["pfr"] > 0.1
    assert small["size"]["original_parameters"] == whole["size"]["original_parameters"]
    theirs, mine = (read(tmp_path / run / "model.sparsign") for run in ("whole", "cut"))
    assert mine.meta["original"] == theirs.meta["original"]
    assert [(n.op, n.name, n.inputs) for n in mine.nodes] == [(n.op, n.name, n.inputs) for n in theirs.nodes]
    for name, node in theirs.layers().items():
        codes = mine.layers()[name].codes
        assert codes.full_shape == node.codes.full_shape
        for field in ("rows", "cols") + ("codes",) * node.codes.coded:
            assert np.array_equal(getattr(codes, field), getattr(node.codes, field)), (name, field)
        np.testing.assert_allclose(codes.weight(), node.codes.weight(), rtol=1e-5, atol=1e-7)
    states = [load_plain(RunFolder(tmp_path / run).boundary("prune"))["model"] for run in ("whole", "cut")]
    numbers = [sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor)) for state in states]
    assert numbers[1] < 0.85 * numbers[0]


def test_a_run_stopped_after_the_cut_goes_on_to_the_same_bits(composed, tmp_path, plain_page, monkeypatch):
    words = ["schedule.finetune.epochs=2", CUT]
    after_epoch = MidStageCheckpoint.after_epoch

    def keep(self, trainer):
        after_epoch(self, trainer)
        if self.stage == "finetune" and trainer.current_epoch == 0:
            shutil.copytree(tmp_path / "run", tmp_path / "stopped")

    monkeypatch.setattr(MidStageCheckpoint, "after_epoch", keep)
    report = train.run(composed("vgg11", *words), tmp_path / "run")
    assert report["reload"]["identical_predictions"] is True
    metrics = [row for row in RunFolder(tmp_path / "run").read_metrics() if row["stage"] == "finetune"]
    assert metrics[-1]["pfr"] == pytest.approx(report["structure"]["pfr"])  # of the uncut network, in metrics too
    resumed = composed("vgg11", *words, f"resume={tmp_path / 'stopped'}")
    train.run(resumed, tmp_path / "stopped")
    files = [(tmp_path / run / "model.sparsign").read_bytes() for run in ("run", "stopped")]
    assert files[0] == files[1]
    told = RunFolder(tmp_path / "run").stages.read_text()
    assert told.count("cut: true") == 1


def test_a_stage_that_ends_the_cut_can_be_gone_back_to(composed, tmp_path):
    """The checkpoint of the pruned stage alone rebuilds its network, and that of the stage before is uncut."""
    config = composed("vgg11", CUT)
    run = prepare(config, RunFolder(tmp_path / "run"))
    run.plan = run.plan[:2]
    run_stages(run, NoTracker(), Console(quiet=True))
    again = prepare(config, RunFolder(tmp_path / "run"))
    load_finished(again, ["pretrain"])
    assert sum(p.numel() for p in again.model.parameters()) > sum(p.numel() for p in run.model.parameters())
    load_finished(again, ["prune"])
    images = next(iter(run.data.test_dataloader()))[0]
    with torch.no_grad():
        assert torch.equal(again.model.eval()(images), run.model.eval()(images))


def test_another_method_goes_on_from_a_pruned_and_cut_network(composed, configuration, tmp_path, plain_page):
    first = train.run(composed("admm", "compressor.quantize=none", CUT), tmp_path / "pruned")
    boundary = RunFolder(tmp_path / "pruned").boundary("finetune")
    words = ["compressor=twn", "model=lenet5", f"model.pretrained={boundary}", *TINY_DATA, *ONE_EPOCH]
    words += ["schedule.pretrain.epochs=0", "schedule.quantize.distill=0.5", "trainer.threads=1"]
    words += [f"dataset.image_size={size_of('lenet5')}"]
    second = train.run(configuration(*words), tmp_path / "ternary")
    assert second["reload"]["identical_predictions"] is True
    assert second["size"]["original_parameters"] == first["size"]["original_parameters"]
    kept = [{n: c.codes.rows.tolist() for n, c in read(tmp_path / run / "model.sparsign").layers().items()}
            for run in ("pruned", "ternary")]  # fmt: skip
    assert all(set(kept[1][name]) <= set(rows) for name, rows in kept[0].items())
    before, after = (RunFolder(tmp_path / run).read_metrics() for run in ("pruned", "ternary"))
    tested = [[row["test_top1"] for row in rows if "test_top1" in row] for rows in (before, after)]
    assert tested[1][0] == tested[0][-1]  # what it begins with is what the other run ended with


REFUSED = {
    "schedule.pretrain.cut=true: nothing is pruned in it; expected false": [
        "compressor=stq_a", "schedule.pretrain.cut=true"
    ],
    "schedule.finetune.cut=true: no stage follows, and the packed file is cut anyway": [
        "compressor=stq_a", "schedule.finetune.cut=true"
    ],
    "schedule.quantize.cut=true: stage prune prunes after it": [
        "compressor=wpc", "compressor.order=ternarise_then_prune", "schedule.quantize.cut=true"
    ],
    "schedule.prune.cut=true: .*its scale or threshold is taken over channels that go": [
        "compressor=msf", "model.options.block=plain", CUT
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_cut_is_refused_before_training(message, configuration, tmp_path):
    words = ["model=resnet20", *TINY_DATA, "dataset.image_size=16", *REFUSED[message]]
    with pytest.raises(ValueError, match=message) as caught:
        train.run(configuration(*words), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_only_the_last_stage_of_a_kind_is_cut(configuration):
    config = configuration("compressor=admm", "model=lenet5", "compressor.rounds=2", "compressor.rhos=[0.1]", CUT)
    plans = resolve(config, build.compressor(config), build.model(config))
    assert [(p.stage.name, p.cut) for p in plans if p.cut or p.stage.kind == "prune"] == [
        ("prune", False), ("prune-2", True),
    ]  # fmt: skip
    assert [p.told.get("cut") for p in plans] == [True if p.cut else None for p in plans]


class FixedView(nn.Module):
    """Says in its own code how many features there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(-1, 4 * 36))


def test_a_network_that_wants_all_its_channels_is_refused():
    net = FixedView()
    net.conv.weight.data[1] = 0
    config = SimpleNamespace(model=SimpleNamespace(in_channels=3, image_size=8))
    with pytest.raises(ValueError, match="the network's own code wants all of its channels"):
        cut_network(config, net, "prune")
