"""ImageNet, too large for memory: folders of images decoded by worker processes."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sparsign.datamodules.base import ImageData
from sparsign.datamodules.splits import Split, missing, stratified

RESIZE = 256 / 224  # the shorter side before the central crop, as a share of the crop


class EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) only; `generator` also seeds the workers' augmentation."""

    def __init__(self, data: Sized, seed: int) -> None:
        self.count, self.seed = len(data), seed
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self.generator).tolist())


class ImageNet(ImageData):
    """root/train/<class>/* and root/val/<class>/*, the latter as test images; both are read as RGB.

    Training: random resized crop and flip; else the central crop of `image_size`. Labels number the class folders in
    alphabetical order. `load()` is refused, since the set does not fit in memory: use the loaders.
    """

    classes = 1000

    def load(self) -> Split:
        """Raises ValueError."""
        raise ValueError("dataset.name=imagenet does not fit in memory; expected its loaders to be used")

    def prepare_data(self) -> None:
        """Nothing to fetch: ImageNet cannot be downloaded without an account."""

    def setup(self, stage: str | None = None) -> None:
        """Index the folders. Raises FileNotFoundError without train and val, ValueError for another class count."""
        if not all((self.root / part).is_dir() for part in ("train", "val")):
            text = str(missing(self.root, "folders train/<class> and val/<class> of ImageNet")).split(" (set")[0]
            raise FileNotFoundError(f"{text} (it has to be put there by hand)")
        plain, augmented = self._transforms()
        self._test = ImageFolder(self.root / "val", plain)
        train = ImageFolder(self.root / "train", augmented if self.augment else plain)
        held_back = ImageFolder(self.root / "train", plain)
        for folder in (train, self._test):
            if len(folder.classes) != self.classes:
                raise ValueError(f"{folder.root}: {len(folder.classes)} class folders, expected {self.classes}")
        labels = torch.tensor(train.targets)
        index = torch.arange(len(labels))
        if self.limit is not None and self.limit < len(labels):
            index = stratified(labels, self.limit)[1]
        rest, held_out = stratified(labels[index], round(self.val_fraction * len(index)))
        self._train: Dataset[Any] = Subset(train, index[rest].tolist())
        self._val = Subset(held_back, index[held_out].tolist())

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and augmented; order and augmentation of an epoch depend on (seed, epoch) when workers > 0."""
        rank, world_size = self._world()
        if world_size > 1:
            sampler: Any = DistributedSampler(self._train, world_size, rank, shuffle=True, seed=self.seed)
        else:
            sampler = EpochSampler(self._train, self.seed)
        generator = getattr(sampler, "generator", None)
        full = len(self._train) >= self.batch_size * world_size
        return self._batches(self._train, sampler=sampler, drop_last=full, generator=generator)

    def val_dataloader(self) -> Any:
        """The held-out part of the training images, plain; [] when val_fraction is 0."""
        return self._batches(self._val) if len(self._val) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The official validation images, plain and in order."""
        return self._batches(self._test)

    def _batches(self, data: Any, **options: Any) -> DataLoader[Any]:
        if "sampler" not in options:
            rank, world_size = self._world()
            options["sampler"] = range(rank, len(data), world_size)
        pinned = torch.device(self.device).type == "cuda"
        return DataLoader(data, self.batch_size, num_workers=self.workers, pin_memory=pinned, **options)

    def _transforms(self) -> tuple[transforms.Compose, transforms.Compose]:
        finish = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        central = [transforms.Resize(round(self.image_size * RESIZE)), transforms.CenterCrop(self.image_size)]
        random = [transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()]
        return transforms.Compose([*central, *finish]), transforms.Compose([*random, *finish])

    def _check(self) -> None:
        super()._check()
        if self.channels != 3:
            raise ValueError(f"dataset.channels={self.channels} does not suit {self.title}; expected 3")
