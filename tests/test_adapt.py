"""What a stage does besides training: batch-norm statistics estimated anew, and the teacher it may follow."""

import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from sparsign.pipeline import build, stages
from sparsign.pipeline.adapt import reestimate_batchnorm
from sparsign.pipeline.folder import RunFolder
from sparsign.pipeline.teacher import build_teacher
from sparsign.pipeline.tracking import CsvTracker
from tests.conftest import TINY_DATA
from tests.test_matrix import ONE_EPOCH


def normed_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6),
        nn.BatchNorm1d(6, momentum=None),
    )  # fmt: skip
    for norm in (net[1], net[5]):
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(9.0)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return net


def by_hand(net: nn.Sequential, batches: list) -> list[np.ndarray]:
    """Mean and unbiased variance per channel of both BN's inputs, averaged over the batches, in float64."""
    found = []
    for images, _ in batches:
        maps = nn.functional.conv2d(images.double(), net[0].weight.double(), net[0].bias.double()).detach().numpy()
        mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3))
        gamma, beta = (p.detach().double().numpy() for p in (net[1].weight, net[1].bias))
        first = (maps - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
        first = np.maximum(first * gamma[:, None, None] + beta[:, None, None], 0)
        hidden = first.reshape(len(first), -1) @ net[4].weight.detach().double().numpy().T
        hidden = hidden + net[4].bias.detach().double().numpy()
        n = maps.shape[0] * maps.shape[2] * maps.shape[3]
        found.append([mean, var * n / (n - 1), hidden.mean(0), hidden.var(0, ddof=1)])
    return [np.mean(values, axis=0) for values in zip(*found, strict=True)]


def test_statistics_are_averages_over_the_first_batches_and_nothing_else_changes():
    net = normed_net()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 3, 5, 5, generator=generator) * k + k, torch.zeros(8)) for k in (1, 2, 5)]
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    reestimate_batchnorm(net, iter(batches), 2)
    found = [net[1].running_mean, net[1].running_var, net[5].running_mean, net[5].running_var]
    for mine, expected in zip(found, by_hand(net, batches[:2]), strict=True):
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (net[1].momentum, net[5].momentum) == (0.3, None)
    for name, p in net.named_parameters():
        assert torch.equal(p, weights[name]) and p.grad is None


class Result:
    """One run of all stages on tiny images, and the test logits at the end of every stage."""

    def __init__(self, config, path, monkeypatch):
        self.folder, self.logits, self.console = RunFolder(path), [], Console(quiet=True)
        top1 = stages.test_top1

        def recorded(run):
            answer = top1(run)
            self.logits.append(run.logits)
            return answer

        tracker = CsvTracker()
        tracker.open(self.folder.path, {}, None)
        with monkeypatch.context() as patch:
            patch.setattr(stages, "test_top1", recorded)
            run = stages.prepare(config, self.folder)
            self.trained = stages.run_stages(run, tracker, self.console)


def test_trained_network_is_tested_in_the_memory_layout_of_the_packed_one(configuration, tmp_path, monkeypatch):
    """Sums in another order differ in the last bit, and that flips signs of a binary network: other predictions."""
    options = ["model=resnet20", *TINY_DATA, *ONE_EPOCH, "dataset.image_size=16", "trainer.channels_last=true"]
    run = Result(configuration("compressor=xnor", *options), tmp_path / "run", monkeypatch)
    images = [batch.contiguous() for batch, _ in run.trained.data.test_dataloader()]
    net = run.trained.model.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        assert torch.equal(torch.cat([net(batch) for batch in images]), run.logits[-1])


@pytest.mark.parametrize("options, said", [
    (["compressor=twn", "schedule.teacher=nowhere.pt"], r"schedule\.teacher=nowhere\.pt: there is no such file"),
    (["compressor=stq_a"], r"distill needs schedule\.teacher=<file>"),
    (["compressor=twn", "schedule.teacher_model=vgg11"], r"teacher_model=vgg11 needs schedule\.teacher=<its weights>"),
    (["compressor=twn", "schedule.teacher_model=vgg"], r"schedule\.teacher_model=vgg: expected one of .*vgg11"),
])  # fmt: skip
def test_teacher_that_is_not_there_is_missed_before_the_first_stage(
    options, said, configuration, tmp_path, monkeypatch
):
    distilled = ["schedule.quantize.distill=0.5", "schedule.finetune.distill=0.5"]
    config = configuration(*options, "model=nin", *TINY_DATA, *ONE_EPOCH, *distilled)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Result(config, tmp_path, monkeypatch)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("method", ["ptq", "wpc"])
def test_teacher_is_the_float_network_of_the_pretrain_stage(method, configuration, tmp_path, monkeypatch):
    config = configuration(
        f"compressor={method}", "model=lenet5", *TINY_DATA, *ONE_EPOCH, "dataset.image_size=16",
        "schedule.quantize.distill=0.5",
    )  # fmt: skip
    run = Result(config, tmp_path / "run", monkeypatch)
    teacher = build_teacher(config, run.folder)
    assert not teacher.training and not any("parametrizations" in name for name in teacher.state_dict())
    with torch.no_grad():
        logits = torch.cat([teacher(images.contiguous()) for images, _ in run.trained.data.test_dataloader()])
    assert torch.equal(logits, run.logits[0])
    assert not torch.allclose(logits, run.logits[-1])


@pytest.mark.parametrize("form", ["fbin", "wbin"])
def test_a_run_without_a_float_stage_asks_for_a_teacher(form, configuration, tmp_path):
    config = configuration("compressor=stq_a", "model=nin", *TINY_DATA, f"compressor.form={form}")
    folder = RunFolder(tmp_path)
    folder.boundary("pretrain").parent.mkdir(parents=True)
    folder.boundary("pretrain").write_bytes(b"whatever a binary pretrain stage left")
    with pytest.raises(ValueError, match=r"distill needs schedule\.teacher=<file>"):
        build_teacher(config, folder)


def test_named_teacher_is_built_in_float_form(configuration, tmp_path):
    options = ["model=resnet20", *TINY_DATA, "dataset.image_size=16"]
    other = build.model(configuration("compressor=twn", *options, "seed=5"))
    torch.save(other.state_dict(), tmp_path / "float.pt")
    config = configuration("compressor=stq_a", *options, f"schedule.teacher={tmp_path / 'float.pt'}")
    teacher = build_teacher(config, RunFolder(tmp_path / "run"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(teacher(images), other.eval()(images))


@pytest.mark.parametrize("model", ["nin", "resnet20 model.options.block=react"])
def test_teacher_may_be_another_network(model, configuration, tmp_path):
    small = [*TINY_DATA, "dataset.image_size=16"]
    other = build.model(configuration("compressor=twn", "model=resnet32", *small, "seed=5"))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    options = [f"schedule.teacher={tmp_path / 'other.pt'}", "schedule.teacher_model=resnet32"]
    config = configuration("compressor=stq_a", *f"model={model}".split(), *small, *options)
    teacher = build_teacher(config, RunFolder(tmp_path / "run"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(teacher(images), other.eval()(images))


def run_folder(path, config):
    """A run folder whose float pretrain stage has ended; its network."""
    (path / "checkpoints").mkdir(parents=True)
    OmegaConf.save(config, path / "config.yaml", resolve=True)
    net = build.model(config)
    torch.save({"model": net.state_dict()}, path / "checkpoints" / "pretrain.ckpt")
    return net.eval()


@pytest.mark.parametrize("model", ["nin", "resnet20"])
def test_a_run_folder_of_another_network_says_which(model, configuration, tmp_path):
    small = [*TINY_DATA, "dataset.image_size=16"]
    other = run_folder(tmp_path / "other", configuration("compressor=twn", "model=resnet32", *small, "seed=5"))
    config = configuration("compressor=stq_a", f"model={model}", *small, f"schedule.teacher={tmp_path / 'other'}")
    teacher = build_teacher(config, RunFolder(tmp_path / "run"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(teacher(images), other(images))


@pytest.mark.parametrize("named", [[], ["schedule.teacher_model=resnet32"]])
def test_a_teacher_saw_images_as_its_students_are(named, configuration, tmp_path):
    small = [*TINY_DATA, "dataset.image_size=16"]
    run_folder(tmp_path / "other", configuration("compressor=twn", "model=resnet32", *small, "dataset.std=[1,1,1]"))
    teacher = [f"schedule.teacher={tmp_path / 'other'}", *named]
    config = configuration("compressor=stq_a", "model=nin", *small, *teacher)
    with pytest.raises(ValueError, match=r"saw images of dataset\.std=\[[^\n]*; expected \[[^\n]*, as here$"):
        build_teacher(config, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    "written, said",
    [
        (
            "model: {form: wbin, _target_: sparsign.models.nin.nin, options: {}}",
            "a run of form wbin; expected one that",
        ),
        ("seed: 1", r"its config\.yaml names no network"),
        ("a: [", r"its config\.yaml names no network"),
    ],
)
def test_a_run_folder_without_a_float_network_is_no_teacher(written, said, configuration, tmp_path):
    (tmp_path / "config.yaml").write_text(written)
    config = configuration("compressor=stq_a", "model=nin", *TINY_DATA, f"schedule.teacher={tmp_path}")
    with pytest.raises(ValueError, match=rf"^schedule\.teacher={tmp_path}: {said}[^\n]*$"):
        build_teacher(config, RunFolder(tmp_path / "run"))


def test_a_resumed_run_ends_with_the_weights_and_statistics_of_one_that_never_stopped(
    configuration, tmp_path, monkeypatch
):
    """NIN draws dropout in front of its BNs, while training and while estimating their statistics."""
    config = configuration(
        "compressor=stq_a",
        "model=nin",
        *TINY_DATA,
        *ONE_EPOCH,
        "dataset.image_size=8",
        "schedule.finetune.bn_batches=1",
    )
    whole = Result(config, tmp_path / "whole", monkeypatch)
    for stage in ("pretrain", "prune"):
        boundary = RunFolder(tmp_path / "resumed").boundary(stage)
        boundary.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole.folder.boundary(stage), boundary)
    resumed = Result(config, tmp_path / "resumed", monkeypatch)
    assert len(whole.logits) == 3 and len(resumed.logits) == 1
    assert torch.equal(whole.logits[-1], resumed.logits[-1])
    state = resumed.trained.model.state_dict()
    for name, value in whole.trained.model.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, state[name]), name
