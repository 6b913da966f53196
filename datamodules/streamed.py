"""Large data sets: image files, decoded and augmented by worker processes while training goes on.

What the workers send is uint8, so that a batch is small on its way; it is normalised on the device. The chance of an
image is drawn from (seed, epoch, image), so an epoch repeats whatever the number of workers.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sparsign.datamodules.base import Batches, ImageData
from sparsign.datamodules.decode import BrokenImageError, central_crop, flip, open_rgb, random_resized_crop
from sparsign.datamodules.splits import stratified, subset
from sparsign.datamodules.tensors import normalise

Key = tuple[int, int, int]
"""What a worker is asked for: the image's number, the seed of its chance, the side of its crop."""


@dataclass(frozen=True)
class Listing:
    """Image files and their labels, int64 [N]; the paths as numpy bytes, which forked workers share without copying."""

    paths: np.ndarray
    labels: Tensor

    @classmethod
    def of(cls, items: Sequence[tuple[str, int]]) -> "Listing":
        return cls(np.array([os.fsencode(path) for path, _ in items]), torch.tensor([label for _, label in items]))

    def take(self, index: Tensor) -> "Listing":
        return Listing(self.paths[index.numpy()], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


class StreamedImages(ImageData):
    """A data set of image files, read as RGB. Subclasses give `index()`.

    Training: random resized crop and flip; else the central crop of `image_size`. Workers stay alive from epoch to
    epoch and keep `prefetch_factor` batches each in store; for a GPU the batches lie in pinned memory.
    """

    mirrored = True

    def index(self) -> tuple[Listing, Listing, Listing | None]:
        """The files for training, for the test and, where the set has its own, for validation.

        Raises FileNotFoundError or ValueError naming the folder that is not as it should be.
        """
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        train, test, own = self.index()
        train = train.take(subset(train.labels, self.limit))
        count = round(self.val_fraction * len(train)) if own is None else 0
        rest, held_out = stratified(train.labels, count)
        self._check_left(len(rest), len(train))
        self._train, self._val = train.take(rest), train.take(held_out) if own is None else own
        self._test = test.take(subset(test.labels, self.limit_test))

    def train_dataloader(self) -> "StreamLoader":
        order = EpochOrder(len(self._train), self.seed, self.batch_size, self.image_size, *self.world())
        if self.augment and self.crop_size is not None and self.trainer is not None:
            order.first_side, order.first_epochs = self.crop_size, self.crop_part * self.trainer.max_epochs
        return self._loader(self._train, order, self.augment, drop_last=len(order) >= self.batch_size)

    def val_dataloader(self) -> Batches:
        return self._plain(self._val) if len(self._val) and self.val_fraction else []

    def test_dataloader(self) -> "StreamLoader":
        return self._plain(self._test)

    def contents(self) -> dict[str, Any]:
        """Names, labels, and sizes and times instead of the bytes, which would take as long to read as an epoch."""
        told: dict[str, Any] = {}
        for part, files in (("train", self._train), ("val", self._val), ("test", self._test)):
            paths = [os.fsdecode(path) for path in files.paths]
            told[f"{part}.labels"] = files.labels
            told[part] = [(os.path.relpath(p, self.root), (s := os.stat(p)).st_size, s.st_mtime_ns) for p in paths]
        return told

    def _plain(self, files: Listing) -> "StreamLoader":
        rank, world_size = self.world()
        return self._loader(files, [(i, 0, self.image_size) for i in range(rank, len(files), world_size)], False, False)

    def _loader(self, files: Listing, order: Any, augment: bool, drop_last: bool) -> "StreamLoader":
        workers = min(self.workers, processors())
        pool = {"prefetch_factor": self.prefetch_factor, "persistent_workers": True} if workers else {}
        batches = DataLoader(
            ImageFiles(files, self.flip if augment else "none", augment),
            self.batch_size,
            sampler=order,
            drop_last=drop_last,
            collate_fn=collate,
            num_workers=workers,
            generator=torch.Generator(),  # the DataLoader's own draws would touch the stream of dropout
            pin_memory=torch.device(self.device).type == "cuda",
            **pool,
        )
        return StreamLoader(batches, self.mean, self.std, self.device, self.channels_last)

    def _check(self) -> None:
        super()._check()
        if self.channels != 3:
            raise ValueError(f"dataset.channels={self.channels} does not suit {self.title}; expected 3")
        if self.pad_mode != "zero":
            raise ValueError(
                f"dataset.pad_mode={self.pad_mode} does not suit {self.title}, whose crops need no padding"
            )


def processors() -> int:
    """Those that this process may use: more workers would only take turns."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ImageFiles(Dataset[Any]):
    """What a worker does: `files[key]` is (uint8 [3, side, side], label), or the error of a file that is no image.

    An error is handed over, not raised: raised in a worker it would arrive as a page of text.
    """

    def __init__(self, files: Listing, mirrored: str, augment: bool) -> None:
        self.files, self.mirrored, self.augment = files, mirrored, augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | BrokenImageError:
        index, seed, side = key
        try:
            image = open_rgb(os.fsdecode(self.files.paths[index]))
        except BrokenImageError as error:
            return error
        if not self.augment:
            return central_crop(image, side), int(self.files.labels[index])
        chance = np.random.default_rng([seed, index])
        pixels = random_resized_crop(image, side, chance)
        if self.mirrored == "alternate":
            first = np.random.default_rng(index).integers(2)
            return flip(pixels, (first + seed) % 2 == 1), int(self.files.labels[index])
        return flip(pixels, self.mirrored == "random" and chance.integers(2) == 1), int(self.files.labels[index])


def collate(items: list[Any]) -> tuple[Tensor, Tensor] | BrokenImageError:
    """A batch, or the first error in it."""
    for item in items:
        if isinstance(item, BrokenImageError):
            return item
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


class EpochOrder(Sampler[Key]):
    """The keys of one epoch for one rank: a permutation that depends on (seed, epoch) only, in equal parts.

    Before the epoch `first_epochs` (a fraction counts) crops have the side `first_side`. `start`: images to leave out,
    because a stopped epoch goes on.
    """

    def __init__(self, count: int, seed: int, batch_size: int, side: int, rank: int, world_size: int) -> None:
        self.count, self.seed, self.batch_size, self.side = count, seed, batch_size, side
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0
        self.first_side, self.first_epochs = side, 0.0

    def __len__(self) -> int:
        return -(-self.count // self.world_size)

    def __iter__(self) -> Iterator[Key]:
        seed = (self.seed * 1_000_003 + self.epoch) % 2**63
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        mine = order[torch.arange(self.rank, len(self) * self.world_size, self.world_size) % self.count].tolist()
        batches, start, self.start = max(1, len(self) // self.batch_size), self.start, 0
        for place in range(start, len(mine)):
            early = self.epoch + place // self.batch_size / batches < self.first_epochs
            yield mine[place], seed, self.first_side if early else self.side


class StreamLoader:
    """Iterates (float32 images [B, 3, side, side], normalised on `device`, int64 labels [B]) over uint8 batches.

    Like `TensorLoader` it goes on inside a stopped epoch. Raises ValueError naming the path of a broken image.
    """

    batch_sampler = None  # Lightning looks for one on whatever has a sampler

    def __init__(
        self,
        batches: DataLoader[Any],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        self.batches, self.mean, self.std = batches, tuple(mean), tuple(std)
        self.device, self.channels_last = device, channels_last
        self.dataset = batches.dataset
        self._done = 0

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def sampler(self) -> "StreamLoader":
        """This loader: Lightning calls `loader.sampler.set_epoch` at the start of every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws; another epoch than the present one starts at its first batch."""
        order = self.batches.sampler
        if isinstance(order, EpochOrder) and epoch != order.epoch:
            order.epoch, order.start, self._done = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The place inside the epoch; Lightning keeps it in the checkpoint."""
        return {"epoch": getattr(self.batches.sampler, "epoch", 0), "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were handed out when `state` was taken."""
        order = self.batches.sampler
        if isinstance(order, EpochOrder):
            order.epoch, self._done = int(state["epoch"]), int(state["done"]) % len(self)
            order.start = self._done * order.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = getattr(self.batches.sampler, "start", 0) // (self.batches.batch_size or 1)
        for place, batch in enumerate(self.batches, start=start + 1):
            if isinstance(batch, BrokenImageError):
                raise batch
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            images = normalise(images, self.mean, self.std)
            if self.channels_last:
                images = images.to(memory_format=torch.channels_last)
            self._done = place
            yield images, labels
