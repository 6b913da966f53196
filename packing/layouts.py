"""Where the codes of a layer lie: one class per layout. `expand` spreads what is stored over the cut weight.

A layout knows the shape of the cut weight, [rows, cols, kh, kw] or [rows, cols], and at most one mask that says which
pieces of it are stored. Its bytes in a file are that mask's, its cost in an account `index_bits`. Files name it by
`name`, so that another layout needs no other version of the format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Shape = tuple[int, ...]
LAYOUTS: dict[str, type[Layout]] = {}
"""Every layout, by the name that files use."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Base of all layouts.

    Attributes:
        shape: of the cut weight.
        mask: bool, which pieces are stored; None where all are. Its shape is the layout's own.
    """

    shape: Shape
    mask: np.ndarray | None = None
    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        LAYOUTS[cls.name] = cls

    def stored_shape(self) -> Shape:
        """Shape of the stored codes."""
        raise NotImplementedError

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, col) into the cut weight's first two axes, each broadcastable against the stored codes."""
        raise NotImplementedError

    def expand(self, stored: np.ndarray) -> np.ndarray:
        """An array of `shape` with the stored numbers in their places and 0 elsewhere."""
        raise NotImplementedError

    def take(self, dense: np.ndarray) -> np.ndarray:
        """Inverse of `expand`: what is stored of an array of `shape`."""
        raise NotImplementedError

    @classmethod
    def mask_shape(cls, shape: Shape, width: int) -> Shape | None:
        """Shape of the mask over a weight of `shape`; None where there is none. `width`: see `Groups`."""
        return None

    def kernels(self) -> np.ndarray | None:
        """bool [rows, cols]: the kernels (or single weights) of which anything is stored; None for all."""
        return None

    def index_bits(self) -> int:
        """Plain storage of the mask: a bit per piece."""
        return 0 if self.mask is None else self.mask.size

    def problem(self) -> str | None:
        """What is wrong with the mask, or None."""
        return None if self.mask is None else f"{self.name} takes no mask"


@dataclass(frozen=True, eq=False)
class Dense(Layout):
    """Everything is stored."""

    name = "dense"

    def stored_shape(self) -> Shape:
        return self.shape

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        return _grid(self.shape)

    def expand(self, stored: np.ndarray) -> np.ndarray:
        return stored

    def take(self, dense: np.ndarray) -> np.ndarray:
        return dense


@dataclass(frozen=True, eq=False)
class Gathered(Layout):
    """Every row reads equally many columns (STQ-B's expander masks): mask [rows, cols], codes [rows, D, kh, kw]."""

    name = "gathered"

    @classmethod
    def mask_shape(cls, shape: Shape, width: int) -> Shape:
        return shape[:2]

    @property
    def columns(self) -> np.ndarray:
        """int64 [rows, D]: the columns that each row reads, increasing."""
        return np.nonzero(self.mask)[1].reshape(len(self.mask), -1)

    def kernels(self) -> np.ndarray:
        return self.mask

    def stored_shape(self) -> Shape:
        return (self.shape[0], int(self.mask[0].sum()), *self.shape[2:])

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        spread = (1,) * (len(self.shape) - 2)
        row, col = np.arange(self.shape[0])[:, None], self.columns
        return row.reshape(*row.shape, *spread), col.reshape(*col.shape, *spread)

    def expand(self, stored: np.ndarray) -> np.ndarray:
        return _scatter(self.shape, self.mask, stored)

    def take(self, dense: np.ndarray) -> np.ndarray:
        return dense[self.mask].reshape(self.stored_shape())

    def problem(self) -> str | None:
        if self.mask is None or self.mask.shape != self.shape[:2]:
            return f"mask of gathered columns is not of shape {list(self.shape[:2])}"
        counts = self.mask.sum(axis=1)
        return None if counts.min() == counts.max() > 0 else "rows of gathered columns read unequally many, or none"


@dataclass(frozen=True, eq=False)
class Groups(Layout):
    """Groups of one row x `width` consecutive columns x the whole kernel (WPC; width 1: 2-D kernels) are there or not.

    mask [rows, cols / width]; codes [groups that are there, width, kh, kw].
    """

    name = "groups"

    @classmethod
    def mask_shape(cls, shape: Shape, width: int) -> Shape:
        if width < 1 or shape[1] % width:
            raise ValueError(f"groups of {width} columns do not divide {shape[1]}")
        return (shape[0], shape[1] // width)

    @property
    def width(self) -> int:
        return self.shape[1] // self.mask.shape[1]

    def kernels(self) -> np.ndarray:
        return self.mask.repeat(self.width, axis=1)

    def _split(self) -> Shape:
        return (*self.mask.shape, self.width, *self.shape[2:])

    def stored_shape(self) -> Shape:
        return (int(self.mask.sum()), self.width, *self.shape[2:])

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        spread = (1,) * (len(self.shape) - 2)
        row, group = np.nonzero(self.mask)
        col = group[:, None] * self.width + np.arange(self.width)
        return row.reshape(-1, 1, *spread), col.reshape(*col.shape, *spread)

    def expand(self, stored: np.ndarray) -> np.ndarray:
        return _scatter(self._split(), self.mask, stored).reshape(self.shape)

    def take(self, dense: np.ndarray) -> np.ndarray:
        return dense.reshape(self._split())[self.mask]

    def problem(self) -> str | None:
        fits = self.mask is not None and self.mask.ndim == 2 and self.mask.shape[1] >= 1
        fits = fits and len(self.mask) == self.shape[0] and self.shape[1] % self.mask.shape[1] == 0
        return None if fits else f"mask of groups does not divide a weight of shape {list(self.shape)}"


@dataclass(frozen=True, eq=False)
class Irregular(Layout):
    """Single weights are there or not (ADMM, PTQ): mask of the weight's shape, codes [weights that are there]."""

    name = "irregular"

    @classmethod
    def mask_shape(cls, shape: Shape, width: int) -> Shape:
        return shape

    def kernels(self) -> np.ndarray:
        return self.mask.reshape(*self.shape[:2], -1).any(axis=2)

    def stored_shape(self) -> Shape:
        return (int(self.mask.sum()),)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        row, col = np.nonzero(self.mask)[:2]
        return row, col

    def expand(self, stored: np.ndarray) -> np.ndarray:
        return _scatter(self.shape, self.mask, stored)

    def take(self, dense: np.ndarray) -> np.ndarray:
        return dense[self.mask]

    def problem(self) -> str | None:
        fits = self.mask is not None and self.mask.shape == self.shape
        return None if fits else f"mask of single weights is not of shape {list(self.shape)}"


def _grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    spread = (1,) * (len(shape) - 2)
    return np.arange(shape[0]).reshape(-1, 1, *spread), np.arange(shape[1]).reshape(1, -1, *spread)


def _scatter(shape: Shape, mask: np.ndarray, stored: np.ndarray) -> np.ndarray:
    dense = np.zeros(shape, stored.dtype)
    dense[mask] = stored.reshape(-1, *shape[mask.ndim :])
    return dense


def index_entropy(mask: np.ndarray | None) -> float:
    """The mask at its empirical entropy, in bits."""
    if mask is None or not mask.size:
        return 0.0
    p = np.count_nonzero(mask) / mask.size
    return mask.size * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) if 0 < p < 1 else 0.0
