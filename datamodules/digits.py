"""scikit-learn's handwritten digits: 1797 images that come with the library, for runs without any download."""

import torch
from sklearn.datasets import load_digits

from sparsign.datamodules.on_device import OnDeviceImages
from sparsign.datamodules.splits import Split, stratified

ENLARGE = 3


class Digits(OnDeviceImages):
    """8x8 grey digits enlarged three times to 24x24, then zero-padded to `image_size`; 80 % train, 20 % test.

    The split into train and test is stratified and fixed (our choice: the set has no official one).
    """

    classes = 10
    class_names = tuple("0123456789")
    crop_padding = 2

    def read(self) -> Split:
        """Images 0..16 are scaled to 0..255."""
        data = load_digits()
        small = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)
        images = small.repeat_interleave(ENLARGE, 1).repeat_interleave(ENLARGE, 2).unsqueeze(1)
        labels = torch.from_numpy(data.target).to(torch.int64)
        train, test = stratified(labels, round(0.2 * len(labels)))
        return Split(images[train], labels[train], images[test], labels[test])
