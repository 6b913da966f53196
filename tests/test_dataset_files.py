"""Data sets from files of the true format; bad ones are named in one line."""

import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sets import TinyCifar10, cifar_batches, make, one_line, pixels, write_binary

from sparsign.datamodules.cifar import Cifar10, Cifar100
from sparsign.datamodules.digits import Digits
from sparsign.datamodules.idx import FashionMnist, Mnist
from sparsign.datamodules.tiny_imagenet import TinyImageNet


def test_digits_are_enlarged_scaled_and_centred():
    from sklearn.datasets import load_digits

    split = make(Digits, channels=1).load()
    assert split.train_images.shape[1:] == (1, 32, 32)
    inner = split.test_images[:, 0, 4:28, 4:28]
    assert split.test_images.sum() == inner.sum()
    small = {image.round().astype(int).tobytes() for image in load_digits().images}
    for image in inner[:20]:
        for shift in range(3):
            assert (image[shift::3, shift::3].double() * 16 / 255).round().long().numpy().tobytes() in small
    assert make(Digits, channels=3, image_size=28).load().train_images.shape[1:] == (3, 28, 28)


class TinyCifar100(Cifar100):
    records = (200, 100)


def write_python(cls, folder):
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, images, labels in cifar_batches(cls):
        content = {b"data": images, cls.label_key: labels.tolist(), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        written.append((images, labels))
    return written


@pytest.mark.parametrize("cls", [TinyCifar10, TinyCifar100])
@pytest.mark.parametrize("kind", [0, 1], ids=["binary", "python"])
@pytest.mark.parametrize("inside", [True, False])
def test_cifar_files(tmp_path, cls, kind, inside):
    folder = tmp_path / cls.folders[kind] if inside else tmp_path
    written = (write_binary, write_python)[kind](cls, folder)
    split = make(cls, tmp_path).load()
    train = np.concatenate([images for images, _ in written[:-1]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(split.train_images.numpy(), train)
    assert np.array_equal(split.test_images.numpy(), written[-1][0].reshape(-1, 3, 32, 32))
    assert np.array_equal(split.train_labels.numpy(), np.concatenate([labels for _, labels in written[:-1]]))


def test_half_a_cifar_file_is_refused(tmp_path):
    write_binary(TinyCifar10, tmp_path)
    path = tmp_path / "data_batch_3.bin"
    os.truncate(path, 10 * 3073)
    with pytest.raises(ValueError, match="data_batch_3") as error:
        make(TinyCifar10, tmp_path).load()
    one_line(error, 10 * 3073, 20 * 3073)


def test_half_a_cifar_pickle_is_refused(tmp_path):
    write_python(TinyCifar10, tmp_path)
    path = tmp_path / "test_batch"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="test_batch") as error:
        make(TinyCifar10, tmp_path).load()
    one_line(error, path.stat().st_size)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("content", [Evil(), {b"data": Evil(), b"labels": []}, [1], {b"data": b"x", b"labels": [1]}])
def test_pickles_of_anything_but_arrays_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_python(TinyCifar10, tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="data_batch_2") as error:
        make(TinyCifar10, tmp_path).load()
    one_line(error)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("cls", "name"), [(Cifar10, "cifar-10-batches-bin"), (Mnist, "MNIST/raw"), (TinyImageNet, "tiny-imagenet-200")]
)
def test_absent_files_are_named(tmp_path, cls, name):
    with pytest.raises(FileNotFoundError, match=r"dataset\.root") as error:
        make(cls, tmp_path, channels=1 if cls is Mnist else 3, image_size=64).load()
    one_line(error, tmp_path, name)


def test_a_failing_download_is_one_clear_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Error downloading\nby all mirrors")

    monkeypatch.setattr(TinyCifar10, "torchvision_class", fail)
    with pytest.raises(FileNotFoundError, match="download failed") as error:
        make(TinyCifar10, tmp_path / "new", download=True).load()
    one_line(error, tmp_path / "new", "Error downloading")
    assert not (tmp_path / "new").exists()


def test_nothing_is_downloaded_into_a_folder_whose_parent_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyCifar10, "torchvision_class", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(FileNotFoundError, match="there is no folder") as error:
        make(TinyCifar10, tmp_path / "slip" / "cifar", download=True).load()
    one_line(error, tmp_path / "slip" / "cifar", tmp_path / "slip")
    assert not list(tmp_path.iterdir())


def test_download_is_read_afterwards(tmp_path, monkeypatch):
    def download(root, download):
        write_python(TinyCifar10, tmp_path / "cifar-10-batches-py")

    monkeypatch.setattr(TinyCifar10, "torchvision_class", staticmethod(download))
    assert make(TinyCifar10, tmp_path, download=True).load().train_images.shape == (100, 3, 32, 32)


class TinyMnist(Mnist):
    records = (30, 20)


class TinyFashion(FashionMnist):
    records = (30, 20)


def write_idx(cls, folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for prefix, count in zip(("train", "t10k"), cls.records, strict=True):
        images, labels = pixels(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        written[prefix] = images
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes() + array.tobytes()
            path = folder / f"{prefix}-{kind}-ubyte"
            path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)
    return written


@pytest.mark.parametrize(
    ("cls", "place"), [(TinyMnist, "MNIST/raw"), (TinyFashion, "FashionMNIST/raw"), (TinyMnist, ".")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, cls, place, packed):
    written = write_idx(cls, tmp_path / place, packed)
    split = make(cls, tmp_path, channels=1).load()
    assert np.array_equal(split.train_images[:, 0, 2:30, 2:30].numpy(), written["train"])
    assert np.array_equal(make(cls, tmp_path, channels=1, image_size=28).load().test_images[:, 0], written["t10k"])
    assert split.test_labels.tolist() == [i % 10 for i in range(20)]


def test_damaged_idx_files_are_refused(tmp_path):
    write_idx(TinyMnist, tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="t10k-images") as error:
        make(TinyMnist, tmp_path, channels=1).load()
    one_line(error, len(whole) // 2, len(whole))
    path.write_bytes(b"\x01" + whole[1:])
    with pytest.raises(ValueError, match="header"):
        make(TinyMnist, tmp_path, channels=1).load()
    path.unlink()
    (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(whole)[:200])
    with pytest.raises(ValueError, match="gzip"):
        make(TinyMnist, tmp_path, channels=1).load()


class SmallTinyImageNet(TinyImageNet):
    classes = 3


def write_tiny(place):
    ids = ["n03", "n01", "n02"]
    lines = []
    for label, name in enumerate(sorted(ids)):
        (place / "train" / name / "images").mkdir(parents=True)
        (place / "val" / "images").mkdir(parents=True, exist_ok=True)
        for i in range(4):
            flat = Image.new("RGB" if i else "L", (64, 64), (50 * label + 20,) * 3 if i else 50 * label + 20)
            flat.save(place / "train" / name / "images" / f"{name}_{i}.JPEG")
        flat.save(place / "val" / "images" / f"val_{label}.JPEG")
        lines.append(f"val_{label}.JPEG\t{name}\t0\t0\t62\t62\n")
    (place / "wnids.txt").write_text("\n".join(ids))
    (place / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))


def test_tiny_imagenet_tree_and_its_decoded_copy(tmp_path):
    place = tmp_path / "tiny-imagenet-200"
    write_tiny(place)
    split = make(SmallTinyImageNet, tmp_path, image_size=64).load()
    assert split.train_images.shape == (12, 3, 64, 64)
    colours = split.train_images.float().mean((1, 2, 3))
    assert torch.allclose(colours, 50.0 * split.train_labels + 20, atol=1)
    assert split.test_labels.tolist() == [2, 1, 0]
    assert torch.allclose(split.test_images.float().mean((1, 2, 3)), 50.0 * split.test_labels + 20, atol=1)
    for path in place.glob("*/*/*/*.JPEG"):
        path.write_bytes(b"")  # only the decoded copy is left
    again = make(SmallTinyImageNet, tmp_path, image_size=64).load()
    assert torch.equal(again.train_images, split.train_images)
    annotations = (place / "val" / "val_annotations.txt").read_text().splitlines()
    (place / "val" / "val_annotations.txt").write_text("\n".join(reversed(annotations)))
    other = make(SmallTinyImageNet, tmp_path, image_size=64).load()
    assert other.test_labels.tolist() == [0, 1, 2]  # and the images are no longer those that were decoded in that place
    assert torch.equal(other.test_images, split.test_images.flip(0))
    (place / "decoded-train.npy").write_bytes(b"\x93NUMPY")  # a broken copy is not believed
    with pytest.raises(ValueError, match="JPEG"):
        make(SmallTinyImageNet, tmp_path, image_size=64).load()
