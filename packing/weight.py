"""The weight of one layer after training: codes, how they become numbers, where they lie, and what was cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsign.packing.layouts import Layout
from sparsign.packing.values import Table, Values

MAX_SIZE = 1 << 28


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """`weight() == layout.expand(values(codes))`, exactly in fp32, of the kept rows and columns.

    Attributes:
        full_shape: before cutting: [out, in / groups, kh, kw], [in, out / groups, kh, kw] if transposed, or [out, in].
        rows, cols: int64, increasing: the kept indices into the first two axes of `full_shape`.
        codes: int8 or int16 of `layout.stored_shape()`; fp32 where `values` is `Floats`.
        values: how codes become numbers.
        layout: where they lie in the cut weight [rows, cols, kh, kw] or [rows, cols].
    """

    full_shape: tuple[int, ...]
    rows: np.ndarray
    cols: np.ndarray
    codes: np.ndarray
    values: Values
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the cut weight."""
        return (len(self.rows), len(self.cols), *self.full_shape[2:])

    @property
    def coded(self) -> bool:
        """False for a layer that stayed float."""
        return self.values.coded

    def stored(self) -> np.ndarray:
        """fp32 values of the stored codes."""
        row, col = self.layout.places()
        return self.values(self.codes, row, self.cols[col])

    def weight(self) -> np.ndarray:
        """fp32 weight of `shape`."""
        return self.layout.expand(self.stored())

    def dense_codes(self) -> np.ndarray:
        """Integer codes of `shape`, 0 where the layout stores nothing. Only for coded layers."""
        return self.layout.expand(self.codes)

    def nonzero(self) -> np.ndarray:
        """Bool of `shape`: where the weight is not zero."""
        return self.layout.expand(self.stored() != 0)

    def check(self, dims: int) -> None:
        """ValueError unless the arrays agree with each other; `dims` is 4 for convs, 2 for linear layers."""
        full = self.full_shape
        good = len(full) == dims and all(1 <= n <= MAX_SIZE for n in full)
        need(good, f"weight of shape {list(full)}, expected {dims} sizes")
        check_index("kept rows", self.rows, full[0])
        check_index("kept columns", self.cols, full[1])
        need(math.prod(self.shape) <= MAX_SIZE, f"a weight of shape {list(self.shape)} is too large")
        need(self.layout.shape == self.shape, f"layout of shape {list(self.layout.shape)}, expected {list(self.shape)}")
        problem = self.layout.problem()
        need(problem is None, str(problem))
        stored = self.layout.stored_shape()
        need(self.codes.shape == stored, f"codes have shape {list(self.codes.shape)}, expected {list(stored)}")
        if self.coded:
            need(self.codes.dtype in (np.int8, np.int16), f"codes are {self.codes.dtype}, expected int8 or int16")
            need(self.codes.min(initial=0) > np.iinfo(np.int16).min, "a code lies outside [-32767, 32767]")
        else:
            check_floats("weight", self.codes)
        for name, array in self.values.arrays().items():
            check_floats(name, array)
        problem = self.values.problem(self.codes, len(self.rows), full[1])
        need(problem is None, str(problem))
        if self.coded and not isinstance(self.values, Table) and self.codes.size:
            largest = max(float(abs(array).max(initial=0)) for array in self.values.arrays().values())
            most = max(-int(self.codes.min()), int(self.codes.max()))
            need(
                largest * most <= float(np.finfo(np.float32).max),
                f"a scale of {largest:g} times a code of {most} is no fp32",
            )


def need(condition: bool, problem: str) -> None:
    """ValueError(problem) unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def check_index(name: str, index: np.ndarray, limit: int | None = None) -> None:
    """ValueError unless `index` is int64 [n], n >= 1, strictly increasing, within [0, limit)."""
    good = index.dtype == np.int64 and index.ndim == 1 and index.size and index[0] >= 0 and (np.diff(index) > 0).all()
    need(bool(good), f"{name} is not an increasing list of indices")
    need(limit is None or index[-1] < limit, f"{name} goes up to {index[-1]}, expected less than {limit}")


def check_floats(name: str, tensor: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
    """ValueError unless `tensor` is finite fp32, of `shape` where that is given."""
    need(tensor.dtype == np.float32, f"{name} is {tensor.dtype}, expected float32")
    need(shape is None or tensor.shape == shape, f"{name} has shape {list(tensor.shape)}, expected {list(shape or ())}")
    need(bool(np.isfinite(tensor).all()), f"{name} holds NaN or infinity")
