"""Small data sets: read once, kept on the device as uint8, augmented there a batch at a time."""

from typing import Any

import torch
from torch import Tensor

from sparsign.datamodules.base import Batches, ImageData, fetch_or_explain
from sparsign.datamodules.splits import Split, fit_images, stratified, subset
from sparsign.datamodules.tensors import TensorLoader


class OnDeviceImages(ImageData):
    """A data set that lives on `device`. Subclasses give `read()`, and `fetch()` where it can be downloaded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._split: Split | None = None
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

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
        """All images, fitted to `channels` and `image_size`, before limits and validation split; read once."""
        if self._split is None:
            split = self._read_or_fetch()
            self._check_read("training", split.train_images, split.train_labels)
            self._check_read("test", split.test_images, split.test_labels)
            train, test = (
                fit_images(images, self.channels, self.image_size, self.title)
                for images in (split.train_images, split.test_images)
            )
            self._split = Split(train, split.train_labels, test, split.test_labels)
        return self._split

    def _check_read(self, part: str, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[2] != images.shape[3]:
            shape = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"{self.title}.read(): {part} images are {shape}; expected torch.uint8 [N, C, H, H]")
        wrong = len(labels) != len(images) or bool(((labels < 0) | (labels >= self.num_classes)).any())
        if wrong:
            raise ValueError(
                f"{self.title}.read(): expected {len(images)} {part} labels of 0 to {self.num_classes - 1}, "
                f"not {len(labels)} of {int(labels.min())} to {int(labels.max())}"
            )

    def setup(self, stage: str | None = None) -> None:
        """Limit, split off the validation part and move all parts to `device`."""
        if self._parts and self._parts["test"][0].device == torch.empty(0, device=self.device).device:
            return
        split = self.load()
        train = subset(split.train_labels, self.limit)
        rest, held_out = stratified(split.train_labels[train], round(self.val_fraction * len(train)))
        self._check_left(len(rest), len(train))
        for part, index in (("train", train[rest]), ("val", train[held_out])):
            self._parts[part] = (split.train_images[index].to(self.device), split.train_labels[index].to(self.device))
        test = subset(split.test_labels, self.limit_test)
        self._parts["test"] = (split.test_images[test].to(self.device), split.test_labels[test].to(self.device))

    def train_dataloader(self) -> TensorLoader:
        images, labels = self._parts["train"]
        options: dict[str, Any] = {"drop_last": len(images) >= self.batch_size * self.world()[1]}
        if self.augment:
            options |= {"crop_padding": self.crop_padding, "pad_mode": self.pad_mode, "flip": self.flip}
            if self.crop_size is not None and self.trainer is not None:
                options |= {"crop_size": self.crop_size, "crop_epochs": self.crop_part * self.trainer.max_epochs}
        return self._loader(images, labels, shuffle=True, seed=self.seed, **options)

    def val_dataloader(self) -> Batches:
        images, labels = self._parts["val"]
        return self._loader(images, labels) if len(images) else []

    def test_dataloader(self) -> TensorLoader:
        return self._loader(*self._parts["test"])

    def contents(self) -> dict[str, Any]:
        return {f"{part}.{k}": tensor for part, pair in self._parts.items() for k, tensor in enumerate(pair)}

    def _loader(self, images: Tensor, labels: Tensor, **options: Any) -> TensorLoader:
        rank, world_size = self.world()
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

    def _read_or_fetch(self) -> Split:
        try:
            return self.read()
        except FileNotFoundError:
            if not self.download:
                raise
        fetch_or_explain(self.fetch, self.title, self.root)
        return self.read()
