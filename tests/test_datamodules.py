"""Data sets from files of the true format, and the loader: determinism, resume, augmentation, splits, bad files."""

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms

from sparsign.datamodules.cifar import Cifar10, Cifar100
from sparsign.datamodules.digits import Digits
from sparsign.datamodules.idx import FashionMnist, Mnist
from sparsign.datamodules.image_folder import ImageFolder
from sparsign.datamodules.imagenet import ImageNet
from sparsign.datamodules.splits import stratified
from sparsign.datamodules.tensors import TensorLoader, crop, normalise, pad
from sparsign.datamodules.tiny_imagenet import TinyImageNet

CONFIGS = Path(__file__).parents[1] / "configs" / "dataset"
RANDOM = np.random.default_rng(0)


def make(cls, root="unused", channels=3, **changes):
    options = {"seed": 0, "root": str(root), "download": False, "batch_size": 8, "val_fraction": 0.0, "augment": True}
    options |= {"channels": channels, "image_size": 32, "num_classes": cls.classes or 2, "workers": 0, "limit": None}
    options |= {"mean": [0.5] * channels, "std": [0.25] * channels}
    return cls(**options | changes)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


# ---- the loader


def loader(count=50, **changes):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1) + torch.arange(64, dtype=torch.uint8).view(8, 8)
    options = {"batch_size": 8, "mean": [0.5], "std": [0.25], "crop_padding": 2, "flip": "random", "shuffle": True}
    return TensorLoader(images, torch.arange(count), **options | {"seed": 3, "drop_last": True} | changes)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_is_a_function_of_seed_and_epoch_only():
    old, new = loader(), loader()
    epochs = []
    for epoch in range(3):
        old.set_epoch(epoch)
        epochs.append(list(old))
    new.sampler.set_epoch(2)
    assert same(list(new), epochs[2])
    assert not same(epochs[0], epochs[1])
    other = loader(seed=4)
    other.set_epoch(1)
    assert not same(list(other), epochs[2])
    assert not same(list(other), epochs[1])


def test_a_stopped_epoch_goes_on_where_it_was():
    whole = loader()
    whole.set_epoch(5)
    batches = list(whole)
    stopped = loader()
    stopped.set_epoch(5)
    walk = iter(stopped)
    first = [next(walk) for _ in range(2)]
    fresh = loader()
    fresh.load_state_dict(stopped.state_dict())
    fresh.set_epoch(5)
    assert same(first + list(fresh), batches)
    assert same(list(fresh), batches)  # and only that one pass is short
    assert same([next(iter(whole))], batches[:1])
    assert same(list(whole), batches)  # looking at one batch leaves no trace


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [8] * 6), (False, [8] * 6 + [2])])
def test_every_image_comes_once(drop_last, sizes):
    batches = list(loader(drop_last=drop_last))
    assert [len(labels) for _, labels in batches] == sizes
    seen = torch.cat([labels for _, labels in batches])
    assert len(seen.unique()) == sum(sizes)
    assert seen.tolist() != sorted(seen.tolist())


def test_plain_loader_yields_the_normalised_images_in_order():
    images = torch.from_numpy(pixels(5, 3, 4, 4))
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]
    got = torch.cat([x for x, _ in TensorLoader(images, torch.zeros(5), 2, mean, std, channels_last=True)])
    want = transforms.Normalize(mean, std)(images.double() / 255)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
    batch = next(iter(TensorLoader(images, torch.zeros(5), 2, mean, std, channels_last=True)))[0]
    assert batch.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(5, 7), st.sampled_from(["zero", "reflect"]), st.data())
def test_crop_against_one_image_at_a_time(channels, padding, size, mode, data):
    side = data.draw(st.integers(3, size))
    offset = st.integers(0, size + 2 * padding - side)
    offsets = data.draw(st.lists(st.tuples(offset, offset), min_size=1, max_size=4))
    images = pixels(len(offsets), channels, size, size)
    want = []
    for image, (row, column) in zip(images, offsets, strict=True):
        around = [(0, 0), (padding, padding), (padding, padding)]
        padded = np.pad(image, around, mode="constant" if mode == "zero" else "reflect")
        want.append(padded[:, row : row + side, column : column + side])
    got = crop(pad(torch.from_numpy(images), padding, mode), torch.tensor(offsets), side)
    assert np.array_equal(got.numpy(), np.stack(want))


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    def flipped(epoch):
        data = loader(count=60, crop_padding=0, flip="alternate", drop_last=False, mean=[0.0], std=[1.0])
        data.set_epoch(epoch)
        images, labels = (torch.cat(part) for part in zip(*data, strict=True))
        return dict(zip(labels.tolist(), (images[:, 0, 0, 0] > images[:, 0, 0, -1]).tolist(), strict=True))

    epochs = [flipped(epoch) for epoch in range(3)]
    assert epochs[0] == epochs[2] and len(epochs[0]) == 60
    assert all(epochs[0][label] != epochs[1][label] for label in epochs[0])
    assert 10 < sum(epochs[0].values()) < 50


def test_small_crops_come_first_and_leave_the_rest_as_it_was():
    plain, small = loader(), loader(crop_size=5, crop_epochs=1.5)
    for epoch in range(3):
        plain.set_epoch(epoch), small.set_epoch(epoch)
        full, first = list(plain), list(small)
        sides = [images.shape[-1] for images, _ in first]
        assert sides == {0: [5] * 6, 1: [5] * 3 + [8] * 3, 2: [8] * 6}[epoch]
        assert [y.tolist() for _, y in first] == [y.tolist() for _, y in full]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, full, strict=True) if a.shape == b.shape)


def test_augmentation_yields_every_crop_and_flip_and_nothing_else():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    many = TensorLoader(
        image.expand(400, -1, -1, -1), torch.zeros(400), 400, [0.0], [1.0], crop_padding=1, flip="random"
    )
    got = {tuple(x.mul(255).round().int().flatten().tolist()) for x in next(iter(many))[0]}
    padded = np.pad(image[0, 0].numpy(), 1)
    crops = [padded[row : row + 3, column : column + 3] for row in range(3) for column in range(3)]
    assert got == {tuple(map(int, c.flatten())) for one in crops for c in (one, one[:, ::-1])}


def test_ranks_share_an_epoch_in_equal_parts():
    parts = [torch.cat([y for _, y in loader(drop_last=False, rank=rank, world_size=4)]) for rank in range(4)]
    assert [len(part) for part in parts] == [13] * 4
    assert set(torch.cat(parts).tolist()) == set(range(50))
    plain = [loader(shuffle=False, drop_last=False, rank=rank, world_size=4) for rank in range(4)]
    assert sorted(torch.cat([y for one in plain for _, y in one]).tolist()) == list(range(50))


def test_too_large_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"dataset\.batch_size=64"):
        loader(batch_size=64)


class Recorder(pl.LightningModule):
    """Trains a linear layer and notes what it was fed."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(64, 10), []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch[1].tolist(), float(batch[0].sum())))
        return self.layer(batch[0].flatten(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_in_mid_epoch_with_the_same_batches(tmp_path):
    def fit(resume=None, **options):
        module = Recorder()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **quiet, **options)
        trainer.fit(module, loader(), ckpt_path=resume)
        return module.seen

    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(callbacks=[saver])
    assert [(epoch, index) for epoch, index, *_ in whole] == [(e, i) for e in range(3) for i in range(6)]
    for step in (2, 6, 10):
        assert fit(tmp_path / f"step={step}.ckpt", enable_checkpointing=False) == whole[step:]


# ---- splits


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


# ---- the sets themselves


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


class TinyCifar10(Cifar10):
    records = (20, 10)


class TinyCifar100(Cifar100):
    records = (200, 100)


def cifar_batches(cls):
    for names, count in ((cls.train_files, cls.records[0]), (cls.test_files, cls.records[1])):
        for name in names:
            labels = np.arange(count) % cls.classes
            yield name, pixels(count, 3072), labels


def write_binary(cls, folder):
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, images, labels in cifar_batches(cls):
        coarse = [np.full((len(labels), 1), 7, np.uint8)] * (cls.label_bytes - 1)
        table = np.concatenate([*coarse, labels[:, None].astype(np.uint8), images], 1)
        (folder / f"{name}.bin").write_bytes(table.tobytes())
        written.append((images, labels))
    return written


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


def one_line(error, *words):
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


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
    (place / "decoded-train.npy").write_bytes(b"\x93NUMPY")  # a broken copy is not believed
    with pytest.raises(ValueError, match="JPEG"):
        make(SmallTinyImageNet, tmp_path, image_size=64).load()


# ---- folders of images, decoded by workers


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


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_image_is_one_line_with_its_path(tmp_path, workers):
    write_folders(tmp_path)
    path = tmp_path / "train" / "n02" / "4.JPEG"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"not a whole image") as error:
        list(folder_of(tmp_path, workers=workers).train_dataloader())
    one_line(error, path)


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
