"""Reading the pickles that CIFAR's python version consists of, without running what a stranger put in them."""

import pickle
from pathlib import Path
from typing import Any

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how newer Pythons write bytes in old protocols
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_arrays(path: Path) -> Any:
    """The content of a pickle made of dict, list, str, bytes, numbers and numpy arrays; old strings come as bytes.

    Raises ValueError for a file that is cut short, no pickle, or asks for anything else.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a damaged pickle can raise nearly anything
            size = path.stat().st_size
            raise ValueError(f"{path}: {size} bytes that are not a whole pickle of plain arrays ({error})") from error
