"""Folders of images, decoded by workers."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from sets import make, one_line, pixels, same

from sparsign.datamodules import streamed
from sparsign.datamodules.decode import BrokenImageError, open_rgb
from sparsign.datamodules.image_folder import ImageFolder
from sparsign.datamodules.imagenet import ImageNet


class SmallImageNet(ImageNet):
    classes = 2


def write_folders(root, parts=(("train", 10), ("val", 3)), names=("n01", "n02")):
    for part, count in parts:
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(pixels(40, 50, 3) // 2 + 128 * (label > 0))
                image.save(root / part / name / f"{i}.JPEG")


def folder_of(root, cls=ImageFolder, **changes):
    data = make(cls, root, **{"num_classes": 2, "batch_size": 4} | changes)
    data.setup()
    return data


def test_imagenet_folders(tmp_path):
    write_folders(tmp_path)
    data = folder_of(tmp_path, SmallImageNet, val_fraction=0.2)
    sizes = [len(one.dataset) for one in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sizes == [16, 4, 6]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 0, 1]
    assert images[:3].mean() < 0 < images[3].mean()
    with pytest.raises(FileNotFoundError, match="by hand"):
        make(SmallImageNet, tmp_path / "train").setup()


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_of_streamed_images_is_the_same_with_and_without_workers(tmp_path):
    write_folders(tmp_path)

    def epochs(numbers, **changes):
        train = folder_of(tmp_path, **changes).train_dataloader()
        found = []
        for number in numbers:
            train.sampler.set_epoch(number)
            found.append(list(train))
        return found

    alone = epochs([0, 1])
    assert same(epochs([1], workers=2)[0], alone[1])
    assert same(epochs([1, 0], workers=1)[1], alone[0])
    assert not same(*alone) and not same(epochs([0], seed=1)[0], alone[0])
    assert torch.cat([y for _, y in alone[0]]).bincount().tolist() == [10, 10]
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    epochs([0])
    assert torch.rand(1) == before  # dropout's stream is not touched


def test_a_stopped_epoch_of_streamed_images_goes_on_where_it_was(tmp_path):
    write_folders(tmp_path)
    train, fresh = (folder_of(tmp_path).train_dataloader() for _ in range(2))
    train.set_epoch(3)
    whole, walk = list(train), iter(train)
    first = [next(walk), next(walk)]
    fresh.load_state_dict(train.state_dict())
    fresh.set_epoch(3)
    assert same(first + list(fresh), whole) and same(list(fresh), whole)


def test_streamed_crops_can_start_small_and_flips_alternate(tmp_path):
    write_folders(tmp_path)
    data = folder_of(tmp_path, crop_size=24, crop_part=0.5)
    data.trainer = type("Stage", (), {"max_epochs": 1, "global_rank": 0, "world_size": 1})
    assert [images.shape[-1] for images, _ in data.train_dataloader()] == [24, 24, 24, 32, 32]
    path = tmp_path / "train" / "n01" / "0.JPEG"
    Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert("RGB").save(path)
    files = folder_of(tmp_path, flip="alternate").train_dataloader().dataset
    ramps = [files[(0, epoch, 32)][0][0].float() for epoch in range(4)]
    assert [bool(r[:, 0].mean() > r[:, -1].mean()) for r in ramps[:2]] in ([True, False], [False, True])
    assert [bool(r[:, 0].mean() > r[:, -1].mean()) for r in ramps[2:]] in ([True, False], [False, True])


def test_ranks_share_the_streamed_images(tmp_path):
    write_folders(tmp_path)
    data, seen = folder_of(tmp_path, batch_size=100), []
    for rank in range(3):
        data.trainer = type("Stage", (), {"max_epochs": 1, "global_rank": rank, "world_size": 3})
        seen.append([key[0] for key in data.train_dataloader().batches.sampler])
    assert [len(part) for part in seen] == [7, 7, 7]
    assert set().union(*seen) == set(range(20))


def test_own_folders_with_and_without_a_split(tmp_path):
    names = ("apple", "pear", "plum")
    for sub, parts in (("a", ("train", "test")), ("b", ("train", "val", "test"))):
        write_folders(tmp_path / sub, [(part, 5) for part in parts], names)
    write_folders(tmp_path / "c", [(".", 10)], names)
    sizes = {}
    for sub in "abc":
        data = folder_of(tmp_path / sub, num_classes=3, val_fraction=0.2)
        assert data.class_names == ["apple", "pear", "plum"]
        sizes[sub] = [len(x.dataset) for x in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sizes == {"a": [12, 3, 15], "b": [15, 15, 15], "c": [19, 5, 6]}
    data = folder_of(tmp_path / "b", num_classes=3, val_fraction=0.0, limit=6, limit_test=3)
    assert data.val_dataloader() == [] and len(data.train_dataloader().dataset) == 6
    assert torch.cat([y for _, y in data.test_dataloader()]).tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore")
def test_nothing_left_to_train_on_is_the_fractions_fault(tmp_path):
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"^dataset\.val_fraction=0\.99 leaves none of the 20 images to train on$"):
        folder_of(tmp_path, val_fraction=0.99)


@pytest.mark.parametrize("change", ["other", "same size", "more", "fewer"])
def test_contents_tell_of_every_training_file(tmp_path, change):
    def told():
        found = folder_of(tmp_path, val_fraction=0.2).contents()
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}

    write_folders(tmp_path)
    before, last = told(), tmp_path / "train" / "n02" / "9.JPEG"
    assert told() == before and len(before["train"]) == 16 and len(before["val"]) == 4
    if change == "fewer":
        last.unlink()
    elif change == "same size":
        last.write_bytes(last.read_bytes()[::-1])
        os.utime(last, ns=(0, last.stat().st_mtime_ns + 1000))
    else:
        Image.fromarray(pixels(40, 50, 3)).save(last if change == "other" else last.with_name("10.JPEG"))
    assert told() != before


@pytest.mark.parametrize(("asked", "begun"), [(0, 0), (1, 1), (9, 2)])
def test_no_more_workers_than_processors(tmp_path, monkeypatch, asked, begun):
    write_folders(tmp_path)
    monkeypatch.setattr(streamed, "processors", lambda: 2)
    assert folder_of(tmp_path, workers=asked).train_dataloader().batches.num_workers == begun


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_image_is_one_line_with_its_path(tmp_path, workers):
    write_folders(tmp_path)
    path = tmp_path / "train" / "n02" / "4.JPEG"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"not a whole image") as error:
        list(folder_of(tmp_path, workers=workers).train_dataloader())
    one_line(error, path)


@pytest.mark.parametrize("name, kind", [("deep.png", np.uint16), ("deep.tiff", np.float32)])
def test_pixels_of_more_than_eight_bits_are_refused(tmp_path, name, kind):
    Image.fromarray(np.linspace(0, 1000, 64, dtype=kind).reshape(8, 8)).save(tmp_path / name)
    with pytest.raises(BrokenImageError, match=r"deep\.\w+: pixels of mode \S+; expected 8 bits a channel$"):
        open_rgb(tmp_path / name)


def test_parts_are_not_taken_for_classes(tmp_path):
    write_folders(tmp_path / "a", (("Train", 2), ("Test", 2)))
    with pytest.raises(ValueError, match=r"Test: a part and no class; expected folders called train, test and val$"):
        folder_of(tmp_path / "a")
    write_folders(tmp_path / "b")
    (tmp_path / "b" / "test").mkdir()  # ILSVRC's own: images without labels
    assert len(folder_of(tmp_path / "b", SmallImageNet, val_fraction=0.0).test_dataloader().dataset) == 6


def test_folders_that_are_not_as_they_should_be_are_named(tmp_path):
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"dataset\.num_classes=5: .*holds 2 class folders \(n01, n02\)"):
        folder_of(tmp_path, num_classes=5)
    (tmp_path / "val" / "n02").rename(tmp_path / "val" / "n03")
    with pytest.raises(ValueError, match="n02 is in one of them only"):
        folder_of(tmp_path)
    (tmp_path / "val" / "n03").rename(tmp_path / "val" / "n02")
    for file in (tmp_path / "val" / "n02").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"n02: no image in it"):
        folder_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dataset\.root"):
        folder_of(tmp_path / "nowhere")
