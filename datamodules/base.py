"""What every image data set has in common: reading once, splitting, limiting, and three loaders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsign.datamodules.splits import Split, fit_images, stratified
from sparsign.datamodules.tensors import TensorLoader


class ImageData:
    """A small image data set that lives on `device` as uint8.

    Subclasses give `read()`, and `fetch()` where the set can be downloaded. `device` and `channels_last` may be set
    by the caller before `setup()`. The validation part is cut off the training part, stratified and the same for
    every seed; val_fraction 0 means none, and `val_dataloader()` is then an empty list.

    Raises ValueError in the constructor for options the data set cannot take.
    """

    classes: int
    crop_padding = 0
    flip = False
    trainer: Any = None
    """Lightning's Trainer while a stage trains: the loaders then have this rank's share."""

    def __init__(
        self,
        *,
        seed: int,
        root: str,
        download: bool,
        batch_size: int,
        val_fraction: float,
        augment: bool,
        channels: int,
        image_size: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int = 0,
        limit: int | None = None,
    ) -> None:
        self.title = type(self).__name__
        self.seed, self.root, self.download = seed, Path(root).expanduser(), download
        self.batch_size, self.val_fraction, self.augment = batch_size, val_fraction, augment
        self.channels, self.image_size, self.num_classes = channels, image_size, num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.workers, self.limit = workers, limit
        self.device: torch.device | str = "cpu"
        self.channels_last = False
        self._split: Split | None = None
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}
        self._check()

    def read(self) -> Split:
        """Read the files under `root` in their own size; FileNotFoundError or ValueError name the file."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Download the files into `root`."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Read the data set, downloading it first where that is needed and allowed."""
        self.load()

    def load(self) -> Split:
        """All images, fitted to `channels` and `image_size`, before limit and validation split; read once."""
        if self._split is None:
            split = self._read_or_fetch()
            train, test = (
                fit_images(images, self.channels, self.image_size, self.title)
                for images in (split.train_images, split.test_images)
            )
            self._split = Split(train, split.train_labels, test, split.test_labels)
        return self._split

    def setup(self, stage: str | None = None) -> None:
        """Limit, split off the validation part and move all parts to `device`."""
        if self._parts and self._parts["test"][0].device == torch.empty(0, device=self.device).device:
            return
        split = self.load()
        train = torch.arange(len(split.train_labels))
        if self.limit is not None and self.limit < len(train):
            train = stratified(split.train_labels, self.limit)[1]
        rest, held_out = stratified(split.train_labels[train], round(self.val_fraction * len(train)))
        for part, index in (("train", train[rest]), ("val", train[held_out])):
            self._parts[part] = (split.train_images[index].to(self.device), split.train_labels[index].to(self.device))
        self._parts["test"] = (split.test_images.to(self.device), split.test_labels.to(self.device))

    def train_dataloader(self) -> TensorLoader:
        """Shuffled, augmented where asked, without the last incomplete batch (unless it is the only one)."""
        images, labels = self._parts["train"]
        crop_padding, flip = (self.crop_padding, self.flip) if self.augment else (0, False)
        full = len(images) >= self.batch_size * self._world()[1]
        return self._loader(
            images, labels, shuffle=True, drop_last=full, seed=self.seed, crop_padding=crop_padding, flip=flip
        )

    def val_dataloader(self) -> Any:
        """The held-out part of the training images, plain and in order; [] when val_fraction is 0."""
        images, labels = self._parts["val"]
        return self._loader(images, labels) if len(images) else []

    def test_dataloader(self) -> TensorLoader:
        """The test images, plain and in order."""
        return self._loader(*self._parts["test"])

    def _loader(self, images: Tensor, labels: Tensor, **options: Any) -> TensorLoader:
        rank, world_size = self._world()
        return TensorLoader(
            images,
            labels,
            self.batch_size,
            self.mean,
            self.std,
            device=self.device,
            channels_last=self.channels_last,
            rank=rank,
            world_size=world_size,
            **options,
        )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _read_or_fetch(self) -> Split:
        try:
            return self.read()
        except FileNotFoundError:
            if not self.download:
                raise
        fetch_or_explain(self.fetch, self.title, self.root)
        return self.read()

    def _check(self) -> None:
        if self.num_classes != self.classes:
            raise ValueError(
                f"dataset.num_classes={self.num_classes} does not suit {self.title}; expected {self.classes}"
            )
        if self.batch_size < 1:
            raise ValueError(f"dataset.batch_size={self.batch_size}; expected 1 or more")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"dataset.val_fraction={self.val_fraction}; expected a value in [0, 1)")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"dataset.limit={self.limit}; expected null or 1 or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"dataset.{name}={list(values)}; expected {self.channels} values, one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"dataset.std={list(self.std)}; expected values above 0")


def fetch_or_explain(fetch: Callable[[], None], title: str, root: Path) -> None:
    """Download; whatever goes wrong becomes one clear FileNotFoundError that names the root and the cause."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch()
    except (OSError, RuntimeError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"dataset.root={root} holds no {title} and the download failed ({cause}); put the files there by hand"
        ) from error
