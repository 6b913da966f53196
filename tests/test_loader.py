"""The loader: determinism, resume, augmentation, ranks."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import pixels, same
from torchvision import transforms

from sparsign.datamodules.tensors import TensorLoader, crop, pad


def loader(count=50, **changes):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1) + torch.arange(64, dtype=torch.uint8).view(8, 8)
    options = {"batch_size": 8, "mean": [0.5], "std": [0.25], "crop_padding": 2, "flip": "random", "shuffle": True}
    return TensorLoader(images, torch.arange(count), **options | {"seed": 3, "drop_last": True} | changes)


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
