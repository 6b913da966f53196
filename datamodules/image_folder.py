"""Own image folders: one folder per class, any number of classes."""

import os
from pathlib import Path
from typing import ClassVar

from sparsign.datamodules.splits import stratified
from sparsign.datamodules.streamed import Listing, StreamedImages

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
TEST_SHARE = 0.2
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}


class ImageFolder(StreamedImages):
    """root/train/<class>/* and root/test/<class>/* or root/val/<class>/*; images may lie deeper inside a class.

    Where both test and val exist, val is the validation part (unless val_fraction is 0); where only val does, it is
    the test part. Without train, root/<class>/* is split: 20 % of each class, always the same, are the test part (our
    choice). Classes are numbered in alphabetical order; `class_names` holds their folders' names after `setup()`.
    """

    parts: ClassVar[tuple[str, ...]] = ("train", "test", "val")

    def index(self) -> tuple[Listing, Listing, Listing | None]:
        """Raises FileNotFoundError without folders, ValueError for another number of classes than num_classes."""
        parts = {name: self.root / name for name in self.parts if (self.root / name).is_dir()}
        if "train" not in parts:
            return self._split()
        if len(parts) == 1:
            raise FileNotFoundError(f"dataset.root={self.root} has a folder train, but no test or val beside it")
        self.class_names = self._classes(parts["train"])
        listed = {name: self._list(folder) for name, folder in parts.items()}
        return listed["train"], listed.get("test", listed.get("val")), listed["val"] if len(listed) == 3 else None

    def _split(self) -> tuple[Listing, Listing, None]:
        if not self.root.is_dir() or not any(entry.is_dir() for entry in os.scandir(self.root)):
            raise FileNotFoundError(f"dataset.root={self.root} holds no folders: expected train/<class> or <class>")
        self.class_names = self._classes(self.root)
        if odd := [name for name in self.class_names if name.lower() in PARTS]:
            raise ValueError(f"{self.root / odd[0]}: a part and no class; expected folders called train, test and val")
        files = self._list(self.root)
        rest, test = stratified(files.labels, round(TEST_SHARE * len(files)))
        return files.take(rest), files.take(test), None

    def _classes(self, folder: Path) -> list[str]:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
        if len(names) != self.num_classes:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(
                f"dataset.num_classes={self.num_classes}: {folder} holds {len(names)} class folders ({shown}); "
                f"expected dataset.num_classes={len(names)}"
            )
        return names

    def _list(self, folder: Path) -> Listing:
        items = []
        others = sorted({e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")})
        if others != list(self.class_names):
            odd = sorted(set(others) ^ set(self.class_names))[0]
            raise ValueError(f"{folder}: its class folders are not those of train; {odd} is in one of them only")
        for label, name in enumerate(self.class_names):
            files = sorted(
                os.path.join(place, file)
                for place, _, found in os.walk(folder / name, followlinks=True)
                for file in found
                if file.lower().endswith(SUFFIXES)
            )
            if not files:
                raise ValueError(f"{folder / name}: no image in it; expected files that end in {' '.join(SUFFIXES)}")
            items += [(file, label) for file in files]
        return Listing.of(items)
