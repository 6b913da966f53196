"""A data set: whatever gives uint8 images and labels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split


class Stripes(OnDeviceImages):
    """Stripes that lie, stand or lean on noise, 16x16, grey: 240 images for training, 60 for the test."""

    classes = 3
    own_options: ClassVar = {"width": 2}

    def read(self) -> Split:
        self.class_names = ("lying", "standing", "leaning")
        chance = torch.Generator().manual_seed(0)
        width = self.options["width"]
        return Split(*_part(240, width, chance), *_part(60, width, chance))


def _part(count: int, width: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    patterns = torch.stack([rows, columns, rows + columns]) // width % 2 * 120
    noise = torch.randint(0, 100, (count, 16, 16), generator=chance)
    return (patterns[labels] + noise).to(torch.uint8).unsqueeze(1), labels
