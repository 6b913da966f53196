"""What all data sets share: validation part, limits, normalisation, options, shipped configs."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sets import TinyCifar10, make, write_binary

from sparsign.datamodules.cifar import Cifar10
from sparsign.datamodules.digits import Digits
from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split, stratified
from sparsign.datamodules.tensors import normalise

CONFIGS = Path(__file__).parents[1] / "configs" / "dataset"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0, 1))
def test_stratified_split_keeps_class_shares(labels, fraction):
    labels = torch.tensor(labels)
    count = round(fraction * len(labels))
    rest, picked = stratified(labels, count)
    assert sorted([*rest.tolist(), *picked.tolist()]) == list(range(len(labels)))
    assert len(picked) == count
    for label in labels.unique():
        share = count * float((labels == label).sum()) / len(labels)
        assert abs(int((labels[picked] == label).sum()) - share) < 1


def test_validation_part_is_disjoint_and_the_same_for_every_seed():
    parts = []
    for seed in (0, 1):
        data = make(Digits, channels=1, val_fraction=0.1, seed=seed, augment=False, batch_size=1)
        data.setup()
        part = {"val": data.val_dataloader(), "train": data.train_dataloader(), "test": data.test_dataloader()}
        parts.append({name: torch.cat([x for x, _ in one]) for name, one in part.items()})
    assert torch.equal(parts[0]["val"], parts[1]["val"])
    assert not torch.equal(parts[0]["train"], parts[1]["train"])
    assert [len(parts[0][name]) for name in ("train", "val", "test")] == [1294, 144, 359]
    images = torch.cat(list(parts[0].values())).flatten(1)
    assert len(images.unique(dim=0)) == 1797


def test_without_validation_part_there_is_no_loader():
    data = make(Digits, channels=1, limit=100)
    data.setup()
    assert data.val_dataloader() == []
    labels = torch.cat([y for _, y in data.train_dataloader()])
    assert len(labels) == 96
    assert min(labels.bincount()) >= 5


def test_test_images_can_be_limited():
    data = make(Digits, channels=1, limit_test=50)
    data.setup()
    labels = torch.cat([y for _, y in data.test_dataloader()])
    assert len(labels) == 50 and labels.bincount().tolist() == [5] * 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 7}, r"dataset\.num_classes=7"),
        ({"mean": [0.5]}, r"dataset\.mean=\[0\.5\]; expected 3"),
        ({"std": [0.0, 1.0, 1.0]}, r"dataset\.std"),
        ({"val_fraction": 1.0}, r"dataset\.val_fraction=1"),
        ({"limit": 0}, r"dataset\.limit=0"),
        ({"limit_test": 0}, r"dataset\.limit_test=0"),
        ({"flip": "sometimes"}, r"dataset\.flip=sometimes; expected random"),
        ({"pad_mode": "edge"}, r"dataset\.pad_mode=edge"),
        ({"crop_size": 40}, r"dataset\.crop_size=40; expected null or 1 to 32"),
        ({"batch_size": 0}, r"dataset\.batch_size=0"),
    ],
)
def test_options_a_set_cannot_take_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(Cifar10, **changes)


def test_sizes_and_channels_a_set_cannot_give_are_refused(tmp_path):
    write_binary(TinyCifar10, tmp_path)
    with pytest.raises(ValueError, match=r"dataset\.image_size=28"):
        make(TinyCifar10, tmp_path, image_size=28).load()
    with pytest.raises(ValueError, match=r"dataset\.channels=1"):
        make(TinyCifar10, tmp_path, channels=1).load()


GOOD = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (
            GOOD.float(),
            range(4),
            r"training images are torch\.float32 \[4, 3, 32, 32\]; expected torch\.uint8 \[N, C, H, H\]",
        ),
        (GOOD[:, :, :16], range(4), r"training images are torch\.uint8 \[4, 3, 16, 32\]"),
        (GOOD, range(1, 5), r"expected 4 training labels of 0 to 3, not 4 of 1 to 4"),
        (GOOD, range(3), r"expected 4 training labels of 0 to 3, not 3 of 0 to 2"),
    ],
)
def test_what_read_gives_is_checked(images, labels, said):
    class Own(OnDeviceImages):
        classes = 4

        def read(self):
            return Split(images, torch.tensor(labels), GOOD, torch.arange(4))

    with pytest.raises(ValueError, match=rf"^Own\.read\(\): {said}"):
        make(Own, num_classes=4).load()


def test_normalise_leaves_the_stored_images_alone():
    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert normalise(images, [0.5], [0.25]).flatten().tolist() == [2.0] * 4
    assert images.max() == 255


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_fit_their_class(path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert config["name"] == path.stem
    data = instantiate({key: value for key, value in config.items() if key != "name"}, seed=0)
    assert data.classes in (data.num_classes, None)
