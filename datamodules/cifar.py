"""CIFAR-10 and CIFAR-100, from the official binary files or the official python pickles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.safe_pickle import load_arrays
from sparsign.datamodules.splits import Split, missing

PIXELS = 3 * 32 * 32


class Cifar10(OnDeviceImages):
    """50,000 training and 10,000 test images of 3x32x32 in 10 classes.

    Looks for the binary files in root/cifar-10-batches-bin or root itself, then for the python version in
    root/cifar-10-batches-py or root itself.
    """

    classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    crop_padding = 4
    mirrored = True

    folders = ("cifar-10-batches-bin", "cifar-10-batches-py")
    train_files = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_files = ("test_batch",)
    records = (10_000, 10_000)  # images in each training file and in each test file
    label_bytes = 1  # the last of these bytes is the label
    label_key = b"labels"
    torchvision_class = torchvision.datasets.CIFAR10

    def read(self) -> Split:
        """The first complete set of files found; a file of another size raises ValueError with both sizes."""
        for folder, suffix in self._places():
            if all((folder / (name + suffix)).is_file() for name in (*self.train_files, *self.test_files)):
                train = self._join(folder, self.train_files, suffix, self.records[0])
                test = self._join(folder, self.test_files, suffix, self.records[1])
                return Split(*train, *test)
        looked = f"{self.title} files ({self.train_files[0]}.bin .. {self.test_files[-1]}.bin, or without .bin,"
        raise missing(self.root, f"{looked} in {' or '.join(self.folders)} or directly)")

    def fetch(self) -> None:
        """Download the python version through torchvision."""
        self.torchvision_class(str(self.root), download=True)

    def _places(self) -> Iterator[tuple[Path, str]]:
        for name, suffix in zip(self.folders, (".bin", ""), strict=True):
            yield self.root / name, suffix
            yield self.root, suffix

    def _join(self, folder: Path, names: tuple[str, ...], suffix: str, records: int) -> tuple[Tensor, Tensor]:
        read = self._read_binary if suffix else self._read_python
        parts = [read(folder / (name + suffix), records) for name in names]
        images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"{folder}: labels run to {labels.max()}, expected 0 to {self.classes - 1}")
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _read_binary(self, path: Path, records: int) -> tuple[np.ndarray, np.ndarray]:
        width = self.label_bytes + PIXELS
        size, expected = path.stat().st_size, records * width
        if size != expected:
            raise ValueError(f"{path}: {size} bytes, expected {expected} ({records} records of {width})")
        table = np.fromfile(path, dtype=np.uint8).reshape(records, width)
        return table[:, self.label_bytes :], table[:, self.label_bytes - 1]

    def _read_python(self, path: Path, records: int) -> tuple[np.ndarray, np.ndarray]:
        content = load_arrays(path)
        images = content.get(b"data") if isinstance(content, dict) else None
        labels = content.get(self.label_key) if isinstance(content, dict) else None
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or not isinstance(labels, list | np.ndarray):
            raise ValueError(f"{path}: expected a dict with uint8 'data' and a list '{self.label_key.decode()}'")
        if images.shape != (records, PIXELS) or len(labels) != records:
            found = f"data of shape {images.shape} and {len(labels)} labels"
            raise ValueError(f"{path}: {found}, expected shape {(records, PIXELS)} and {records} labels")
        return images, np.asarray(labels)


class Cifar100(Cifar10):
    """50,000 training and 10,000 test images of 3x32x32 in 100 fine classes; root/cifar-100-binary or -python."""

    classes = 100
    class_names = None
    folders = ("cifar-100-binary", "cifar-100-python")
    train_files = ("train",)
    test_files = ("test",)
    records = (50_000, 10_000)
    label_bytes = 2  # coarse, then fine
    label_key = b"fine_labels"
    torchvision_class = torchvision.datasets.CIFAR100
