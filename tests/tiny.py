"""A handful of small images behind the common data set interface, for tests that go through a whole run."""

import torch
from torch import Tensor

from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split


class TinyImages(OnDeviceImages):
    """48 training and 16 test images of noise whose mean gives the class away: no files, no waiting."""

    classes = 10

    def read(self) -> Split:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> tuple[Tensor, Tensor]:
            labels = torch.arange(count) % 10
            noise = torch.randint(0, 60, (count, self.channels, self.image_size, self.image_size), generator=generator)
            return (noise + labels.view(-1, 1, 1, 1) * 19).to(torch.uint8), labels

        return Split(*part(48), *part(16))
