"""What stays float, rounded: the file holds it in that precision, and answers as the rounded network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsign import train
from sparsign.models.react import ChannelShift
from sparsign.packing.file import read
from sparsign.packing.floats import precision
from sparsign.pipeline.leftovers import rounded, to_precision
from tests.conftest import TINY_DATA
from tests.test_matrix import FEW_STAGES, ONE_EPOCH


def float_arrays(path):
    packed = read(path)
    for node in packed.nodes:
        yield from (a for a in node.tensors.values() if a.dtype == np.float32)
        if node.codes is not None:
            yield from node.codes.values.arrays().values()
            if not node.codes.coded:
                yield node.codes.codes


@pytest.mark.parametrize("kind, options", [
    ("bf16", ["compressor=stq_a", "model=resnet20", "model.options.block=react", "compressor.scale=true"]),
    ("fp16", ["compressor=ttq", "model=resnet20"]),
    ("bf16", ["compressor=admm", "model=lenet5"]),
])  # fmt: skip
def test_the_file_holds_rounded_leftovers_and_answers_as_the_rounded_network(
    kind, options, configuration, tmp_path, plain_page, capsys
):
    few = FEW_STAGES.get(options[0].partition("=")[2], [])
    options = [*options, *few, *TINY_DATA, *ONE_EPOCH, "dataset.image_size=28", "dataset.val_fraction=0.2"]
    report = train.run(configuration(*options, f"leftovers={kind}"), tmp_path / "run")
    said = capsys.readouterr().out
    assert f"leftovers in {kind}: held-out top-1 " in said and " % before, " in said
    assert report["reload"]["identical_predictions"] is True and report["reload"]["max_logit_error"] < 1e-5
    assert report["accuracy"]["top1"] == report["accuracy"]["trained_top1"]
    assert report["size"]["leftovers"] == kind
    arrays = list(float_arrays(tmp_path / "run" / "model.sparsign"))
    assert arrays and all(precision(a) in ("bf16", kind) for a in arrays)
    # the checkpoint is not rounded: without the report and the file, another precision can be had from it
    state = torch.load(tmp_path / "run" / "checkpoints" / "finetune.ckpt", weights_only=True)["model"] if few else None
    assert state is None or any(v.is_floating_point() and precision(v.numpy()) == "fp32" for v in state.values()
                                if isinstance(v, torch.Tensor))  # fmt: skip


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_zeros_of_the_threshold_are_not_pruned_weights(kind, configuration, tmp_path, plain_page):
    options = ["compressor=ptq", "compressor.delta=twn", "compressor.pfr=0.5", "model=lenet5", "dataset.image_size=28"]
    report = train.run(configuration(*options, *TINY_DATA, *ONE_EPOCH, f"leftovers={kind}"), tmp_path / "run")
    structure = report["structure"]
    assert structure["pfr"] == pytest.approx(0.5, abs=1e-3) and structure["weight_pfr"] > 0.501


def test_a_run_resumed_after_its_last_stage_has_the_same_file(configuration, tmp_path, plain_page):
    config = configuration("compressor=bnn", "model=resnet20", *TINY_DATA, *ONE_EPOCH, "leftovers=fp16",
                           "dataset.image_size=16")  # fmt: skip
    train.run(config, tmp_path / "run")
    before = (tmp_path / "run" / "model.sparsign").read_bytes()
    for name in ("model.sparsign", "report.json"):
        (tmp_path / "run" / name).unlink()
    config.resume = str(tmp_path / "run")
    train.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "model.sparsign").read_bytes() == before


def test_batch_norm_becomes_its_rounded_scale_and_shift():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ChannelShift(4), nn.PReLU(4), nn.BatchNorm2d(4, affine=False)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
        for norm in (net[1], net[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    net.eval()
    x = torch.randn(2, 3, 5, 5)

    def by_hand(y):
        y = F.conv2d(y, net[0].weight.bfloat16().float(), net[0].bias.bfloat16().float())
        for norm, rest in ((net[1], True), (net[4], False)):
            gamma = norm.weight if norm.affine else torch.ones(4)
            beta = norm.bias if norm.affine else torch.zeros(4)
            scale = gamma / (norm.running_var + norm.eps).sqrt()
            shift = beta - norm.running_mean * scale
            scale, shift = (t.bfloat16().float().view(-1, 1, 1) for t in (scale, shift))
            y = scale * y + shift
            if rest:
                y = y + net[2].bias.bfloat16().float().view(-1, 1, 1)
                y = F.prelu(y, net[3].weight.bfloat16().float())
        return y

    with torch.no_grad():
        expected = by_hand(x)
        to_precision(net, "bf16")
        assert torch.allclose(net(x), expected, rtol=1e-5, atol=1e-5)


def test_what_a_precision_does_not_hold_is_refused():
    with pytest.raises(ValueError, match=r"leftovers=fp16: conv holds 1e\+05, which fp16 does not"):
        rounded("conv", torch.tensor([1.0, -1e5]), "fp16")


def test_other_precisions_are_named(configuration, tmp_path):
    with pytest.raises(ValueError, match=r"^leftovers=int8: expected a value in fp32 \| bf16 \| fp16$"):
        train.run(configuration("leftovers=int8"), tmp_path / "run")
