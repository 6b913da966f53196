"""Tiny ImageNet: 200 classes of 64x64 images, decoded from its folders once."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive

from sparsign.datamodules.decode import open_rgb
from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split, missing

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIDE = 64


class TinyImageNet(OnDeviceImages):
    """100,000 training images and the 10,000 official validation images, which serve as test images here (our choice:
    the official test labels are not public).

    Looks in root/tiny-imagenet-200, then root itself, for wnids.txt, train/<id>/images/*.JPEG, val/images/*.JPEG and
    val/val_annotations.txt. Decoded images are kept beside them in decoded-*.npy files, where the folder is writable,
    and taken again as long as the files have the same names and order.
    """

    classes = 200
    crop_padding = 8
    mirrored = True

    def read(self) -> Split:
        """Decode, or take what was decoded before; a damaged image raises ValueError with its path."""
        for place in (self.root / "tiny-imagenet-200", self.root):
            if all((place / name).exists() for name in ("wnids.txt", "train", "val/val_annotations.txt")):
                return self._read(place)
        raise missing(self.root, f"{self.title} (wnids.txt, train/, val/val_annotations.txt in tiny-imagenet-200)")

    def fetch(self) -> None:
        """Download and unpack the official archive."""
        download_and_extract_archive(URL, str(self.root))

    def _read(self, place: Path) -> Split:
        names = (place / "wnids.txt").read_text().split()
        if len(names) != self.classes:
            raise ValueError(f"{place / 'wnids.txt'}: {len(names)} classes, expected {self.classes}")
        number = {name: index for index, name in enumerate(sorted(names))}
        train = [
            (path, label)
            for name, label in number.items()
            for path in sorted((place / "train" / name).glob("*/*.JPEG"))
        ]
        test = []
        for line in (place / "val" / "val_annotations.txt").read_text().splitlines():
            file, name = line.split("\t")[:2]
            if name not in number:
                raise ValueError(f"{place / 'val' / 'val_annotations.txt'}: class {name} is not in wnids.txt")
            test.append((place / "val" / "images" / file, number[name]))
        if not train or not test:
            raise ValueError(f"{place}: {len(train)} training and {len(test)} validation images, expected some of both")
        return Split(*_decoded(train, place / "decoded-train.npy"), *_decoded(test, place / "decoded-val.npy"))


def _decoded(items: list[tuple[Path, int]], cache: Path) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([label for _, label in items])
    order = hashlib.sha256("\n".join(str(path.relative_to(cache.parent)) for path, _ in items).encode()).hexdigest()
    images = _read_cache(cache, len(items), order)
    if images is None:
        images = np.stack([decode(path) for path, _ in items])
        _write_cache(cache, images, order)
    return torch.from_numpy(images), labels


def decode(path: Path) -> np.ndarray:
    """One image file -> uint8 [3, 64, 64]. Raises ValueError for a damaged file or another size."""
    pixels = np.asarray(open_rgb(path))
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {SIDE}x{SIDE}")
    return pixels.transpose(2, 0, 1)


def _read_cache(cache: Path, count: int, order: str) -> np.ndarray | None:
    """The images decoded before, if they are of the same files in the same order."""
    try:
        if cache.with_suffix(".order").read_text() != order:
            return None
        images = np.load(cache, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == (count, 3, SIDE, SIDE) and images.dtype == np.uint8 else None


def _write_cache(cache: Path, images: np.ndarray, order: str) -> None:
    part = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    try:
        cache.with_suffix(".order").unlink(missing_ok=True)  # never beside the images of another order
        with open(part, "wb") as file:
            np.save(file, images, allow_pickle=False)
        os.replace(part, cache)
        cache.with_suffix(".order").write_text(order)
    except OSError:  # a read-only or full data folder only costs the decoding again next time
        return
    finally:
        part.unlink(missing_ok=True)
