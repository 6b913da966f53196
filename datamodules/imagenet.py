"""ImageNet (ILSVRC 2012), too large for memory."""

from sparsign.datamodules.image_folder import ImageFolder
from sparsign.datamodules.streamed import Listing


class ImageNet(ImageFolder):
    """root/train/<class>/* and root/val/<class>/*, the latter (the official validation images) as test images."""

    classes = 1000
    parts = ("train", "val")  # the official test images have no labels

    def index(self) -> tuple[Listing, Listing, Listing | None]:
        if not all((self.root / part).is_dir() for part in ("train", "val")):
            raise FileNotFoundError(
                f"dataset.root={self.root} holds no folders train/<class> and val/<class> of ImageNet "
                "(it has to be put there by hand)"
            )
        return super().index()
