"""Every method on every model it makes sense for: through all stages, packed, reloaded, proved; others refused."""

import numpy as np
import pytest
from PIL import Image

from sparsign import train
from sparsign.evaluation.rebuild import test_batches as batches_of
from sparsign.packing.file import read
from tests.conftest import TINY_DATA

MODELS = ["resnet18", "resnet20", "vgg11", "nin", "lenet5", "mobilenet_v2"]
"""The big and the deep ones take part with few methods here, with others in the experiments."""
BINARY_INPUT_MODELS = ["resnet18", "resnet20", "vgg11", "nin"]
METHODS = {
    "stq_a": [*BINARY_INPUT_MODELS, "resnet56"],
    "stq_b": BINARY_INPUT_MODELS,
    "xnor": BINARY_INPUT_MODELS,
    "bnn": BINARY_INPUT_MODELS,
    "subsidiary": ["resnet20", "nin", "vgg11"],
    "msf": ["resnet20", "nin", "vgg11"],
    "ptq": [*MODELS, "resnet44", "resnet56"],
    "wpc": MODELS,
    "admm": MODELS,
    "bwn": [*MODELS, "alexnet"],
    "twn": [*MODELS, "vgg16", "resnet32"],
    "ttq": [*MODELS, "resnet50"],
    "ec2t": ["resnet20", "vgg11", "lenet5"],
}
BUILDS = {  # how binary networks can be built, through one method each
    "stq_a block=plain": ["resnet18"],
    "stq_a block=bireal": ["resnet20"],
    "stq_b block=react shortcut=conv": ["resnet20"],
    "stq_a order=norm_first": ["nin"],
    "bnn block=plain": ["resnet20"],
    "bnn shortcut=sign_conv": ["resnet20"],
}
FORMS = {"stq_a form=wbin": ["resnet18", "vgg11", "nin", "mobilenet_v2"], "stq_b form=wbin": ["resnet18", "vgg11"]}
KINDS = ("pretrain", "prune", "quantize", "finetune")
ONE_EPOCH = [f"schedule.{kind}.{option}" for kind in KINDS for option in ("epochs=1", "bn_batches=1")]
FEW_STAGES = {"admm": ["compressor.rhos=[0.1]"], "stq_a": ["compressor.min_filters=1"]}


def size_of(model: str) -> int:
    return {"alexnet": 32, "lenet5": 28, "vgg11": 32, "vgg16": 32, "mobilenet_v2": 32, "nin": 16}.get(model, 16)


CASES = [(method, model) for method, models in METHODS.items() for model in models]
CASES += [(method, model) for method, models in BUILDS.items() for model in models]
CASES += [(method, model) for method, models in FORMS.items() for model in models]


@pytest.mark.parametrize("method, model", CASES)
def test_method_goes_all_the_way_on(method, model, configuration, tmp_path, plain_page, thin, two_layers):
    if method != "msf":  # few channels, all of one scale, often sum to a sign's very threshold: engines round apart
        thin(model)
    name, *options = method.split()
    options = [f"compressor.{o}" if o.startswith("form") else f"model.options.{o}" for o in options]
    if method == "msf":  # a batch of 16 can be constant in a channel: its mean would lie on the sign's threshold
        options += [f"schedule.{kind}.bn_batches=0" for kind in KINDS]
    config = configuration(
        f"compressor={name}", f"model={model}", *TINY_DATA, *ONE_EPOCH, *options, *FEW_STAGES.get(name, []),
        f"dataset.image_size={size_of(model)}",
    )  # fmt: skip
    report = train.run(config, tmp_path / "run")
    assert report["reload"]["identical_predictions"] is True
    assert report["size"]["compression_ratio"] > 1
    assert report["accuracy"]["top1"] == report["accuracy"]["trained_top1"]


def test_own_image_folders_go_all_the_way_on(configuration, tmp_path, plain_page):
    generator = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(15):
            noise = generator.integers(0, 40, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(shade)).save(tmp_path / "images" / name / f"{i}.png")
    config = configuration(
        "compressor=bnn", "model=resnet20", "dataset=image_folder", f"dataset.root={tmp_path / 'images'}",
        *ONE_EPOCH, "dataset.image_size=16", "dataset.batch_size=8", "dataset.workers=1", "dataset.limit_test=4",
        "trainer.precision=fp32", "trainer.progress=false", "latency.seconds=0",
    )  # fmt: skip
    report = train.run(config, tmp_path / "run")
    assert report["reload"]["identical_predictions"] is True and report["reload"]["compared_images"] == 4
    packed = read(tmp_path / "run" / "model.sparsign")
    assert packed.meta["dataset"]["class_names"] == ["dark", "light"]
    assert len(next(iter(batches_of(packed, tmp_path / "images")))[1]) == 4  # of the 6 that are 20 % of 30


@pytest.mark.parametrize("method", ["stq_a", "stq_b", "xnor", "bnn", "subsidiary", "msf"])
@pytest.mark.parametrize("model", ["lenet5", "alexnet", "mobilenet_v2", "resnet50"])
def test_binary_inputs_are_refused_where_a_model_has_no_such_form(method, model, configuration, tmp_path):
    config = configuration(f"compressor={method}", f"model={model}", *TINY_DATA, f"dataset.image_size={size_of(model)}")
    with pytest.raises(ValueError, match=r"model\.form=fbin is not possible for"):
        train.run(config, tmp_path / "run")
