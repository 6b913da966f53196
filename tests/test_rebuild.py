"""Networks and data sets rebuilt from what a packed file says."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_nets import layer

from sparsign.datamodules import registry as datasets
from sparsign.datamodules.splits import subset
from sparsign.evaluation import rebuild, report
from sparsign.models import registry as models
from sparsign.models.lenet import lenet5
from sparsign.packing.spec import Node, PackedModel

MODEL = {"name": "lenet5", "form": "float", "options": {}}
DATASET = {"name": "digits", "mean": [0.172], "std": [0.32]}


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
    meta = {"model": {**MODEL, **model}, "dataset": DATASET}
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
    packed.meta["dataset"] = {**DATASET, **change}
    with pytest.raises(ValueError):
        rebuild.test_batches(packed, tmp_path)
