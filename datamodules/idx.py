"""MNIST and Fashion-MNIST, from the official IDX files."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split, missing

SIDE = 28


class Mnist(OnDeviceImages):
    """60,000 training and 10,000 test images of 28x28 grey digits, zero-padded to `image_size`.

    Looks for the four IDX files, each plain or .gz, in root/MNIST/raw, then in root itself.
    """

    classes = 10
    class_names: Sequence[str] = tuple("0123456789")
    crop_padding = 2

    folder = "MNIST"
    records = (60_000, 10_000)
    torchvision_class = torchvision.datasets.MNIST

    def read(self) -> Split:
        """The first complete set of files found; a damaged or cut file raises ValueError."""
        for place in (self.root / self.folder / "raw", self.root):
            parts = []
            for prefix, count in zip(("train", "t10k"), self.records, strict=True):
                for kind, shape in (("images-idx3", (count, SIDE, SIDE)), ("labels-idx1", (count,))):
                    path = _find(place, f"{prefix}-{kind}-ubyte")
                    parts.append(path and read_idx(path, shape))
            if all(part is not None for part in parts):
                images, labels = (parts[0], parts[2]), (parts[1].long(), parts[3].long())
                if max(int(part.max()) for part in labels) >= self.classes:
                    raise ValueError(f"{place}: a label file holds labels above {self.classes - 1}")
                return Split(images[0].unsqueeze(1), labels[0], images[1].unsqueeze(1), labels[1])
        looked = "train-images-idx3-ubyte .. t10k-labels-idx1-ubyte (or .gz)"
        raise missing(self.root, f"{self.title} files ({looked}, in {self.folder}/raw or directly)")

    def fetch(self) -> None:
        """Download through torchvision."""
        self.torchvision_class(str(self.root), download=True)


class FashionMnist(Mnist):
    """60,000 training and 10,000 test images of 28x28 grey clothes; root/FashionMNIST/raw or root itself."""

    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mirrored = True
    folder = "FashionMNIST"
    torchvision_class = torchvision.datasets.FashionMNIST


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The uint8 tensor of `shape` in an IDX file: two zero bytes, type 8, rank, big-endian sizes, then the values.

    Raises ValueError with file, bytes found and bytes expected when the content is anything else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {path.stat().st_size} bytes that are not a whole gzip file ({error})") from error
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    expected = len(header) + int(np.prod(shape))
    if len(content) != expected:
        raise ValueError(f"{path}: {len(content)} bytes, expected {expected} (sizes {list(shape)})")
    if not content.startswith(header):
        raise ValueError(
            f"{path}: header {content[: len(header)].hex()}, expected {header.hex()} (sizes {list(shape)})"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy())


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
