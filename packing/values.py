"""How integer codes become numbers: one class per way, each exact in fp32 with a single rounding.

`values(codes, row, col)` maps stored codes to the weight's values; `row` and `col` tell, broadcast against the codes,
which kept row and which column of the uncut weight each lies in (`LayerCodes` makes them from its layout). Code 0 is
always the number 0, so that what a layout leaves out and what is stored as 0 are the same. Files name a way by `name`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

VALUES: dict[str, type[Values]] = {}
"""Every way, by the name that files use."""


@dataclass(frozen=True, eq=False)
class Values:
    """Base of all ways; the fields of a subclass are its fp32 arrays (and plain integers, where it needs any)."""

    name: ClassVar[str] = ""
    coded: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        VALUES[cls.name] = cls

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """fp32 values of the codes' shape."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """The fp32 arrays, by field."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}

    def count(self) -> int:
        """How many fp32 numbers this way keeps."""
        return sum(array.size for array in self.arrays().values())

    def signed_scales(self, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
        """fp32 ([rows], [rows]): what multiplies positive and negative codes of a row; None where that says not all."""
        return None

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        """What does not fit codes of `rows` kept rows and `columns` columns of the uncut weight, or None."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Floats(Values):
    """No codes: what is stored are the fp32 numbers themselves."""

    name = "float"
    coded = False

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return codes

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        return None


@dataclass(frozen=True, eq=False)
class OneScale(Values):
    """scale * code, with one scale [] for the layer."""

    scale: np.ndarray
    name = "scale"

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return _times(codes, self.scale)

    def signed_scales(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return (np.full(rows, self.scale, np.float32),) * 2

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        return _shape_problem("scale", self.scale, ())


@dataclass(frozen=True, eq=False)
class RowScale(Values):
    """scale[row] * code, with one scale per kept row: [rows]."""

    scale: np.ndarray
    name = "row_scale"

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return _times(codes, self.scale[row])

    def signed_scales(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return self.scale, self.scale

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        return _shape_problem("scale", self.scale, (rows,))


@dataclass(frozen=True, eq=False)
class RowGroupScale(Values):
    """scale[row, col // width] * code: [rows, groups], groups of `width` consecutive columns of the uncut weight."""

    scale: np.ndarray
    width: int
    name = "row_group_scale"

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return _times(codes, self.scale[row, col // self.width])

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        if self.width < 1:
            return f"width={self.width}, expected at least 1"
        return _shape_problem("scale", self.scale, (rows, -(-columns // self.width)))


@dataclass(frozen=True, eq=False)
class SignPair(Values):
    """positive * code where code > 0, negative * code where code < 0 (TTQ); both [] or [rows]."""

    positive: np.ndarray
    negative: np.ndarray
    name = "sign_pair"

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        positive, negative = (s[row] if s.ndim else s for s in (self.positive, self.negative))
        return np.where(codes > 0, positive, negative) * codes.astype(np.float32)

    def signed_scales(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(self.positive, rows), np.broadcast_to(self.negative, rows)

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        shape = (rows,) if self.positive.ndim else ()
        return _shape_problem("positive", self.positive, shape) or _shape_problem("negative", self.negative, shape)


@dataclass(frozen=True, eq=False)
class Table(Values):
    """levels[code - 1] for codes 1 .. n, with one table [n] for the layer; code 0 is 0."""

    levels: np.ndarray
    name = "table"

    def __call__(self, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(1, np.float32), self.levels])[codes]

    def problem(self, codes: np.ndarray, rows: int, columns: int) -> str | None:
        if self.levels.ndim != 1:
            return f"levels have shape {list(self.levels.shape)}, expected [n]"
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) <= len(self.levels):
            return f"codes from {codes.min()} to {codes.max()} in a table of {len(self.levels)} levels"
        return None


def _times(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """scale * codes in fp32, in one array: a second one of a large layer costs as much time as the product."""
    found = codes.astype(np.float32)
    found *= scale
    return found


def _shape_problem(name: str, array: np.ndarray, shape: tuple[int, ...]) -> str | None:
    good = array.shape == shape
    return None if good else f"{name} has shape {list(array.shape)}, expected {list(shape)}"
