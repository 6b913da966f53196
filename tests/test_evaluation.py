"""The report on a packed file: what the network does and weighs, speed, schema."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.transforms import Mask, attach, encode_layer, find
from sparsign.compressors.pruning.weights_left import left_with_zeros
from sparsign.compressors.twn import Ternary
from sparsign.evaluation import accuracy, proof, report, report_schema
from sparsign.evaluation.libraries import Int8
from sparsign.evaluation.theory import theory
from sparsign.models.lenet import lenet5
from sparsign.models.nin import nin
from sparsign.packing.file import read, write
from sparsign.packing.trace import to_packed

META = {
    "model": {"name": "lenet5", "form": "float", "options": {}},
    "dataset": {"name": "digits", "mean": [0.172], "std": [0.32]},
    "compressor": {"name": "bwn", "pfr": 0.25, "pfr_unit": "filter"},
    "seed": 3,
    "accuracy": {"val_top1": 0.3, "before_top1": 0.5, "float_top1": None, "trained_top1": 0.25},
}
NO_LATENCY = {"batches": [1], "threads": [1], "seconds": 0}


@pytest.fixture(scope="module")
def trained():
    """LeNet-5 with conv2 and fc1 binary, a quarter of conv2's filters masked away, and images it has not seen."""
    torch.manual_seed(0)
    net = lenet5(10, 1, 32, "wbin").eval()
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module in layers[1:3]:
        attach(module, ScaledBinary(), Mask((module.weight.shape[0], *[1] * (module.weight.dim() - 1))))
    find(layers[1], Mask).mask[:12] = 0
    if layers[1].bias is not None:
        layers[1].bias.data[:12] = 0
    return net, DataLoader(TensorDataset(torch.randn(40, 1, 32, 32), torch.randint(10, (40,))), batch_size=16)


@pytest.fixture(scope="module")
def packed_path(trained, tmp_path_factory):
    net, batches = trained
    answers, _ = accuracy.logits(net, batches)
    path = tmp_path_factory.mktemp("run") / "model.sparsign"
    meta = json.loads(json.dumps({**META, "proof": proof.make(answers)}))
    write(to_packed(net, encode_layer, (1, 32, 32), meta), path)
    return path


@pytest.fixture(scope="module")
def measured(trained, packed_path):
    return report.evaluate_packed(packed_path, trained[1], NO_LATENCY)


def test_report_says_what_the_network_does_and_weighs(trained, packed_path, measured):
    net, batches = trained
    answers, labels = accuracy.logits(net, batches)
    assert measured["accuracy"]["top1"] == accuracy.top1(answers, labels)
    assert measured["reload"]["identical_predictions"] is True
    assert measured["reload"]["max_logit_error"] < 1e-5
    size = measured["size"]
    assert size["packed_bytes"] == packed_path.stat().st_size
    assert size["float_bytes"] == 4 * sum(p.numel() for p in lenet5(10, 1, 32, "float").parameters())
    assert size["compression_ratio"] == size["float_bytes"] / size["packed_bytes"]
    assert size["order0_bytes"] == pytest.approx(size["packed_bytes"], rel=0.1)  # floats deflate a little
    accuracies = measured["accuracy"]
    assert [accuracies[key] for key in ("val_top1", "before_top1", "float_top1")] == [0.3, 0.5, None]
    assert accuracies["top5"] == accuracy.top5(answers, labels) >= accuracies["top1"]
    assert measured["structure"]["pfr"] == 12 / 50
    assert measured["structure"]["pfr_asked"] == 0.25
    assert measured["theory"]["s1"] == 1


def test_layers_of_the_report_add_up(packed_path, measured):
    rows = {row["name"]: row for row in measured["layers"]}
    conv2 = list(rows.values())[1]
    assert (conv2["full_shape"][0], conv2["shape"][0], conv2["levels"]) == (50, 38, 2)
    assert conv2["nonzero_weights"] == np.prod(conv2["shape"])
    assert sum(read(packed_path).bytes_on_disk.values()) == packed_path.stat().st_size
    conv = sum(row["packed_bytes"] for row in rows.values() if row["op"] == "conv")
    assert measured["size"]["conv"]["packed_bytes"] == conv


def test_single_weights_come_with_a_storage_comparison(trained, tmp_path):
    meta = {**META, "compressor": {"name": "ptq", "pfr": 0.5, "pfr_unit": "weight"}}
    path = tmp_path / "model.sparsign"
    write(to_packed(trained[0], encode_layer, (1, 32, 32), meta), path)
    found = report.evaluate_packed(path, trained[1], NO_LATENCY)
    assert all(row["storage"]["best"] in ("dense", "structured", "irregular") for row in found["layers"])
    assert found["theory"]["s2"] == 1.0
    assert found["reload"]["compared_images"] == 0 and found["reload"]["identical_predictions"] is None


def test_a_ternary_quantizers_zeros_are_not_pruned_weights(trained, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 20), nn.ReLU(), nn.Linear(20, 10)).eval()
    attach(net[1], Mask(tuple(net[1].weight.shape)), Ternary())
    find(net[1], Mask).mask[:, :256] = 0
    left = left_with_zeros([net[1]])
    zeros = int((net[1].weight == 0).sum())
    assert left == 20 * 768 and zeros > 20 * 256
    for told, pfr in (({"left": left}, 0.25), ({}, zeros / 20480)):
        meta = {**META, "compressor": {"name": "admm", "pfr": 0.25, "pfr_unit": "weight", **told}}
        path = tmp_path / "model.sparsign"
        write(to_packed(net, encode_layer, (1, 32, 32), meta), path)
        found = report.evaluate_packed(path, trained[1], NO_LATENCY)["structure"]
        assert found["pfr"] == pytest.approx(pfr) and found["weight_pfr"] == pytest.approx(zeros / 20480)
    write(
        to_packed(net, encode_layer, (1, 32, 32), {**meta, "compressor": {"pfr_unit": "weight", "left": 30000}}), path
    )
    with pytest.raises(ValueError, match=r"^compressor\.left=30000: expected a value in \[0, 20480\]"):
        report.evaluate_packed(path, trained[1], NO_LATENCY)
    find(net[1], Ternary).active = False
    assert left_with_zeros([net[1]]) is None


def test_another_networks_answers_are_noticed(trained, tmp_path):
    net, batches = trained
    answers, _ = accuracy.logits(net, batches)
    path = tmp_path / "model.sparsign"
    write(to_packed(net, encode_layer, (1, 32, 32), {**META, "proof": proof.make(-answers)}), path)
    assert report.evaluate_packed(path, batches, NO_LATENCY)["reload"]["identical_predictions"] is False


def test_speed_rows_cover_every_engine_batch_and_thread_count(trained, packed_path):
    options = {"batches": [1, 2], "threads": [1], "seconds": 0.05}
    rows = report.evaluate_packed(packed_path, trained[1], options, limit=4)["speed"]
    engines = 3 + Int8.installed()
    assert [row["batch"] for row in rows] == [1] * engines + [2] * engines
    assert [row["engine"] for row in rows[:2]] == ["torch fp32", "torch bf16"]
    assert all(row["milliseconds"] > 0 for row in rows)


def test_binary_networks_are_theoretically_64_times_faster():
    net = nin(10, 3, 32, "fbin").eval()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs[1:-1]:
        attach(conv, Binary())
    packed = to_packed(net, encode_layer, (3, 32, 32))
    found = theory(packed, "filter", 0.0)
    assert found["layer_speedup"] == 64 and 1 < found["network_speedup"] < 64  # conv1 and the classifier are float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["accuracy"].pop("top1"), "missing key accuracy.top1"),
        (lambda r: r.update(extra=1), "unknown key extra"),
        (lambda r: r["size"].update(packed_bytes=1.5), "size.packed_bytes=1.5"),
        (lambda r: r["structure"].update(pfr=float("nan")), "structure.pfr=nan"),
        (lambda r: r["layers"][0].pop("shape"), r"report.layers\[0\]: missing key shape"),
    ],
)
def test_schema_refuses_other_reports(measured, change, message):
    other = json.loads(json.dumps(measured))
    report_schema.validate(other)
    change(other)
    with pytest.raises(ValueError, match=message):
        report_schema.validate(other)


def test_readme_names_every_key():
    text = (report.Path(report.__file__).parent / "README.md").read_text()
    for keys in (report_schema.KEYS, report_schema.LAYER, report_schema.SPEED):
        for key, (_, meaning) in keys.items():
            assert f"| `{key}` |" in text and meaning in text
