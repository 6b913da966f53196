"""What is measured on a packed file: accuracy, proof, structure, storage, speed-up, and the report they make."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_nets import layer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsign.compressors.parts.quantizers import Binary, ScaledBinary
from sparsign.compressors.parts.transforms import Mask, attach, encode_layer, find
from sparsign.datamodules import registry as datasets
from sparsign.datamodules.splits import subset
from sparsign.evaluation import accuracy, latency, proof, rebuild, report, report_schema
from sparsign.evaluation.pruned_ratio import alive, kept_weights, pruned_ratio
from sparsign.evaluation.storage import layer_storage
from sparsign.evaluation.theory import theory
from sparsign.models import registry as models
from sparsign.models.lenet import lenet5
from sparsign.models.nin import nin
from sparsign.packing.file import read, write
from sparsign.packing.spec import Node, PackedModel
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


# -- accuracy and proof ------------------------------------------------------------------------------------------------


def test_top1_is_the_share_of_right_answers():
    answers = torch.tensor([[0.0, 1, 0], [2, 1, 0], [0, 0, 3], [1, 0, 0]])
    assert accuracy.top1(answers, torch.tensor([1, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("count", [None, 1, 3, 4, 5, 9, 10, 99])
def test_limit_takes_the_first_images_only(count):
    images, labels = torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10)
    batches = list(zip(images.split(4), labels.split(4), strict=True))
    answers, truth = accuracy.logits(lambda x: x.flatten(1), accuracy.limited(batches, count))
    assert truth.tolist() == list(range(10))[:count]
    assert answers.flatten().tolist() == truth.tolist()


def test_top5_needs_more_than_five_classes():
    answers = torch.arange(12.0).view(2, 6)
    assert accuracy.top5(answers, torch.tensor([0, 1])) == 0.5
    assert accuracy.top5(answers[:, :5], torch.tensor([0, 1])) is None


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no test images"):
        accuracy.logits(lambda x: x, [])


def test_digest_is_sha256_of_little_endian_uint16():
    predictions = [0, 1, 9, 255, 256, 999]
    expected = hashlib.sha256(struct.pack("<6H", *predictions)).hexdigest()[:32]
    assert proof.digest(torch.tensor(predictions)) == expected


def test_proof_survives_json_to_the_last_bit():
    answers = torch.randn(20, 10) * torch.logspace(-3, 3, 10)
    found = proof.check(json.loads(json.dumps(proof.make(answers))), answers)
    assert found["identical_predictions"] and found["bit_equal"] and found["max_logit_error"] == 0.0


def test_proof_sees_one_changed_prediction_anywhere():
    answers = torch.randn(20, 10)
    kept, other = proof.make(answers), answers.clone()
    other[19, (answers[19].argmax() + 1) % 10] = 100.0
    result = proof.check(kept, other)
    assert (result["identical_predictions"], result["bit_equal"], result["max_logit_error"]) == (False, False, 0.0)


def test_proof_leaves_out_close_calls_and_says_which():
    answers = torch.zeros(50, 3)
    answers[:, 1] = 10
    answers[7, 2] = 9.9995
    kept, other = proof.make(answers), answers.clone()
    assert (kept["close"], kept["epsilon"]) == ([7], 1e-3)
    other[7, 2] = 10.0005
    found = proof.check(kept, other)
    assert (found["identical_predictions"], found["bit_equal"], found["compared_images"]) == (True, False, 49)
    other[8, 2] = 10.0005  # its margin was wide
    assert not proof.check(kept, other)["identical_predictions"]


@pytest.mark.parametrize("spread", [1e-7, 1e-3, 1.0])
def test_a_hardly_trained_network_leaves_out_few(spread):
    kept = proof.make(1 + spread * torch.rand(1000, 10))
    assert len(kept["close"]) <= proof.MOST_CLOSE


def test_proof_measures_the_largest_error_of_the_kept_logits():
    answers = torch.zeros(20, 3)
    answers[:, 1] = 5
    other = answers.clone()
    other[0, 2] = -0.25
    other[1, 2] = -3  # not among the kept
    assert proof.check(proof.make(answers), other)["max_logit_error"] == 0.25


def test_proof_on_fewer_images_compares_the_first():
    answers = torch.randn(40, 4)
    kept = proof.make(answers)
    for count, compared in ((5, 5), (30, proof.FIRST)):
        found = proof.check(kept, answers[:count])
        assert (found["identical_predictions"], found["compared_images"], found["bit_equal"]) == (True, compared, None)
        other = answers[:count].clone()
        other[4] = -other[4]
        assert not proof.check(kept, other)["identical_predictions"]


def test_a_diverged_network_is_named_as_such():
    with pytest.raises(ValueError, match="training diverged"):
        proof.make(torch.tensor([[0.0, float("inf")]]))


@pytest.mark.parametrize(
    "change",
    [{"logits": [[1.0]]}, {"logits": [1.0] * 9}, {"logits": []}, {"first": None}, {"first": [7]}, {"close": ["x"]}],
)
def test_malformed_proofs_are_refused(change):
    answers = torch.randn(4, 3)
    with pytest.raises(ValueError, match="the packed file's proof is malformed"):
        proof.check({**proof.make(answers), **change}, answers)


# -- structure, storage, theory ----------------------------------------------------------------------------------------


def conv_node(codes, scale=1.0, name="conv", source="sign"):
    return Node("conv", name, (source,), codes=layer(codes.astype(int), scale))


def logits_of(nodes, input_shape):
    """A network that ends in the last of the nodes, flattened."""
    return PackedModel([*nodes, Node("flatten", "flatten", (nodes[-1].name,))], input_shape, "flatten")


def brute_force(mask, unit, group):
    """Share of units without any weight, by loops."""
    out, cin, kh, kw = mask.shape
    units = {
        "filter": [mask[k].any() for k in range(out)],
        "channel": [mask[:, c].any() for c in range(cin)],
        "kernel": [mask[k, c].any() for k in range(out) for c in range(cin)],
        "column": [mask[:, c, y, x].any() for c in range(cin) for y in range(kh) for x in range(kw)],
        "weight": mask.ravel().tolist(),
        "matrix": [
            mask[k].any() and mask[:, c, y, x].any()
            for k in range(out)
            for c in range(cin)
            for y in range(kh)
            for x in range(kw)
        ],
        "group": [mask[k, c : c + group].any() for k in range(out) for c in range(0, cin, group)],
    }[unit]
    return 1 - sum(bool(u) for u in units) / len(units)


@pytest.mark.parametrize("unit", ["filter", "channel", "kernel", "column", "weight", "group", "matrix"])
def test_pruned_ratio_equals_counting_by_loops(unit):
    rng = np.random.default_rng(0)
    mask = rng.random((6, 8, 3, 3)) < 0.1
    mask[2], mask[:, 5], mask[:, 1, 0, 0] = False, False, False
    node = conv_node(mask.astype(int))
    packed = PackedModel([Node("input", "input"), Node("sign", "sign", ("input",)), node], (8, 9, 9), "conv")
    assert pruned_ratio(packed, unit, 4) == pytest.approx(brute_force(mask, unit, 4))


def test_groups_take_the_largest_divisor():
    mask = np.zeros((1, 6, 1, 1), bool)
    mask[0, 5] = True
    assert alive(mask, "group", 4).tolist() == [False, True]


def test_cut_rows_and_wholly_dropped_layers_count_as_removed():
    codes = layer(np.ones((2, 3, 1, 1), int), full=(4, 3, 1, 1), rows=np.array([0, 2]))
    packed = PackedModel([Node("input", "input"), Node("conv", "conv", ("input",), codes=codes)], (3, 5, 5), "conv")
    assert pruned_ratio(packed, "filter") == 0.5
    packed.meta = {"original": {"parameters": 36, "dropped": [["gone", [6, 4, 1, 1], True]]}}
    assert pruned_ratio(packed, "filter") == pytest.approx(8 / 10)


def test_zeros_of_a_ternary_quantizer_are_not_pruned_weights():
    """Columns then filters: 4 of 6 rows, 9 of 72 columns are left, with zeros inside; counted by loops."""
    rng = np.random.default_rng(1)
    mask = np.zeros((6, 8, 3, 3), bool)
    mask[:4, 2] = rng.random((4, 3, 3)) < 0.5
    mask[:4, 2, 0, 0] = mask[0, 2] = True
    assert kept_weights(mask, "matrix") == kept_weights(mask, "filter") == kept_weights(mask, "column") == 4 * 9
    assert kept_weights(mask, "weight") == mask.sum() < 36
    assert kept_weights(mask, "kernel") == 4 * 9 and kept_weights(mask, "group", 4) == 4 * 4 * 9
    packed = logits_of([Node("input", "input"), conv_node(mask.astype(int), source="input")], (8, 9, 9))
    assert pruned_ratio(packed, "matrix") == pytest.approx(1 - 36 / mask.size)
    found = theory(packed, "matrix", pruned_ratio(packed, "matrix"))
    assert [found["s2"], found["s2_macs"]] == pytest.approx([mask.size / 36] * 2)
    assert theory(packed, "weight", 0.9)["s2"] == 1


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match="pfr_unit='filters'"):
        pruned_ratio(PackedModel([], (1, 1, 1), ""), "filters")


@pytest.mark.parametrize(("density", "width", "bits"), [(8, 4, 9.1), (12, 5, 9.6), (36, 7, 11.3), (100, 8, 13.0)])
def test_irregular_storage_costs_what_random_positions_at_four_bits_must(density, width, bits):
    """Expected entries nnz / (1 - (1 - d)^(2^r)), best r: 9.1 bits per weight at d = 1/8, and so on."""
    rng = np.random.default_rng(0)
    codes = rng.choice([*range(-8, 0), *range(1, 9)], (200, 1500)) * (rng.random((200, 1500)) < 1 / density)
    row = layer_storage(layer(codes))
    assert row["index_bits"] == width
    assert row["irregular_bits"] / row["nonzeros"] == pytest.approx(bits, rel=0.01)
    assert row["dense_bits"] == codes.size * 5  # sixteen levels and zero


def test_cut_binary_layer_is_cheapest_structured():
    codes = np.where(np.random.default_rng(0).random((32, 64)) < 0.5, -1, 1).astype(np.int8)
    row = layer_storage(layer(codes, full=(64, 64)))
    assert (row["dense_bits"], row["structured_bits"], row["best"]) == (4096, 2048, "structured")


@pytest.mark.parametrize(("scale", "pfr", "printed"), [(1, 0.19, 79), (0.5, 0.3, 83), (1, 0.28, 89), (1, 0.3, 91)])
def test_theory_reproduces_the_speedups_stq_prints(scale, pfr, printed):
    node = conv_node(np.ones((4, 3, 3, 3)), scale)
    packed = logits_of([Node("input", "input"), Node("sign", "sign", ("input",)), node], (3, 8, 8))
    assert round(theory(packed, "filter", pfr)["layer_speedup"]) == printed


def test_theory_has_no_bit_operations_without_sign():
    packed = logits_of([Node("input", "input"), conv_node(np.ones((4, 3, 3, 3)), source="input")], (3, 8, 8))
    assert theory(packed, "filter", 0.5)["s1"] == 1
    assert theory(packed, "filter", 1.0)["layer_speedup"] is None


def test_the_networks_bound_counts_float_layers_and_large_ones_for_what_they_are():
    """A float stem (3 x 4 weights, 8 x 8 places) before a binary conv on signs that lost half of its 8 filters (4 x 4):
    layer-wise 64 x 2 by filters; the network's is by multiply-accumulates, the stem's undivided."""
    stem = Node("conv", "stem", ("input",), codes=layer(np.ones((4, 3, 1, 1), np.float32)))
    left = layer(np.ones((4, 4, 2, 2), int), 1.0, full=(8, 4, 2, 2))
    conv = Node("conv", "conv", ("sign",), {"stride": (2, 2)}, codes=left)
    packed = logits_of([Node("input", "input"), stem, Node("sign", "sign", ("stem",)), conv], (3, 8, 8))
    found = theory(packed, "filter", 0.5)
    before = 64 * 12 + 16 * 8 * 16
    assert (found["macs"], found["kept_macs"]) == (before, 64 * 12 + 16 * 4 * 16)
    assert (found["layer_speedup"], found["layer_speedup_macs"]) == (128, 128)
    assert found["network_speedup"] == pytest.approx(before / (64 * 12 + 16 * 4 * 16 / 64))


# -- rebuilding from meta ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("registry", "folder"), [(models, "model"), (datasets, "dataset")])
def test_registries_know_every_config_by_its_name(registry, folder):
    configs = Path(report.__file__).parents[1] / "configs" / folder
    found = [yaml.safe_load(file.read_text()) for file in configs.glob("*.yaml")]
    assert all(registry.path(config["name"]) == config["_target_"] for config in found)
    assert len(found) == len(registry.FILES if registry is models else registry.CLASSES)


def small_packed(size=32, **model):
    nodes = [
        Node("input", "input"),
        Node("globalavgpool", "pool", ("input",)),
        Node("flatten", "flatten", ("pool",)),
        Node("linear", "fc", ("flatten",), codes=layer(np.ones((10, 1), np.float32))),
    ]
    meta = {"model": {**META["model"], **model}, "dataset": META["dataset"]}
    return PackedModel(nodes, (1, size, size), "fc", meta)


def test_float_network_is_the_uncompressed_one():
    net = rebuild.float_network(small_packed())
    assert not net.training
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in lenet5(10, 1, 32, "float").parameters())


@pytest.mark.parametrize("name", ["os.system", "sparsign.models.lenet.lenet5", "lenet5 (unregistered)", ""])
def test_networks_outside_the_registry_are_not_looked_for(name):
    assert rebuild.float_network(small_packed(name=name)) is None


def test_options_of_the_binary_form_do_not_stop_the_float_baseline():
    packed = small_packed(name="resnet20", form="fbin", options={"block": "preact"})
    assert rebuild.float_network(packed)(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_test_batches_are_the_data_sets_test_images(tmp_path):
    batches = list(rebuild.test_batches(small_packed(), tmp_path))
    assert sum(len(labels) for _, labels in batches) == 359
    images = torch.cat([images for images, _ in batches])
    assert images.min().item() == pytest.approx(-0.172 / 0.32, abs=1e-5)
    assert images.max().item() == pytest.approx((1 - 0.172) / 0.32, abs=1e-5)


def test_test_batches_are_those_that_the_proof_is_of(tmp_path):
    packed = small_packed()
    packed.meta["proof"] = {"images": 40}
    images = torch.cat([images for images, _ in rebuild.test_batches(packed, tmp_path)])
    whole = torch.cat([images for images, _ in rebuild.test_batches(small_packed(), tmp_path)])
    labels = torch.cat([labels for _, labels in rebuild.test_batches(small_packed(), tmp_path)])
    assert torch.equal(images, whole[subset(labels, 40)])


@pytest.mark.parametrize("change", [{"name": "sparsign.datamodules.digits.Digits"}, {"mean": [0.1, 0.2]}])
def test_other_data_sets_are_refused(change, tmp_path):
    packed = small_packed()
    packed.meta["dataset"] = {**META["dataset"], **change}
    with pytest.raises(ValueError):
        rebuild.test_batches(packed, tmp_path)


# -- latency -----------------------------------------------------------------------------------------------------------


class FakeClock:
    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def candidate(self, name, seconds):
        def call(images):
            self.calls.append((name, len(images), torch.get_num_threads()))
            self.now += seconds * len(images)

        return latency.Candidate(name, "isa", call)


@pytest.fixture
def clock(monkeypatch):
    fake = FakeClock()
    monkeypatch.setattr(latency.time, "perf_counter", fake.perf_counter)
    return fake


def test_latency_rows_hold_medians_and_ratios(clock):
    timed = [clock.candidate("torch fp32", 0.008), clock.candidate("packed", 0.002)]
    rows = latency.measure(timed, (1, 2, 2), batches=[1, 3], threads=[1], seconds=1.0)
    found = [(r["engine"], r["batch"], round(r["milliseconds"], 6), round(r["ratio_to_torch_fp32"], 6)) for r in rows]
    assert found == [("torch fp32", 1, 8, 1), ("packed", 1, 2, 4), ("torch fp32", 3, 24, 1), ("packed", 3, 6, 4)]


def test_candidates_take_turns_and_threads_are_restored(clock):
    before = torch.get_num_threads()
    timed = [clock.candidate("a", 0.01), clock.candidate("b", 0.01)]
    latency.measure(timed, (1, 2, 2), batches=[1], threads=[1, 10_000], seconds=0.4)
    assert torch.get_num_threads() == before
    samples = [name for name, _, threads in clock.calls if threads == 1][4:]
    assert samples[:6] == ["a", "b"] * 3
    assert clock.now < 0.6


def test_slow_candidates_still_get_a_few_samples_and_no_budget_means_no_rows(clock):
    timed = [clock.candidate("a", 50.0)]
    assert latency.measure(timed, (1, 2, 2), seconds=1.0)[0]["samples"] == latency.MIN_SAMPLES
    assert latency.measure(timed, (1, 2, 2), seconds=0.0) == []


# -- the report --------------------------------------------------------------------------------------------------------


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


def test_another_networks_answers_are_noticed(trained, tmp_path):
    net, batches = trained
    answers, _ = accuracy.logits(net, batches)
    path = tmp_path / "model.sparsign"
    write(to_packed(net, encode_layer, (1, 32, 32), {**META, "proof": proof.make(-answers)}), path)
    assert report.evaluate_packed(path, batches, NO_LATENCY)["reload"]["identical_predictions"] is False


def test_speed_rows_cover_every_engine_batch_and_thread_count(trained, packed_path):
    options = {"batches": [1, 2], "threads": [1], "seconds": 0.05}
    rows = report.evaluate_packed(packed_path, trained[1], options, limit=4)["speed"]
    assert [row["batch"] for row in rows] == [1] * 3 + [2] * 3
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
