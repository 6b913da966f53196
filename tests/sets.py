"""Data sets of the tests: small ones, their options, random pixels."""

import numpy as np
import torch

from sparsign.datamodules.cifar import Cifar10

RANDOM = np.random.default_rng(0)


def make(cls, root="unused", channels=3, **changes):
    options = {"seed": 0, "root": str(root), "download": False, "batch_size": 8, "val_fraction": 0.0, "augment": True}
    options |= {"channels": channels, "image_size": 32, "num_classes": cls.classes or 2, "workers": 0, "limit": None}
    options |= {"mean": [0.5] * channels, "std": [0.25] * channels}
    return cls(**options | changes)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True)
    )


def one_line(error, *words):
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


class TinyCifar10(Cifar10):
    records = (20, 10)


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
