"""ADMM's constraint sets: few nonzero groups, or few levels. A set is its projection and its support."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from sparsign.compressors.parts.levels import Levels, encode
from sparsign.compressors.parts.transforms import scaled
from sparsign.compressors.pruning.projections import keep_mask, project


class Constraint(Protocol):
    """A set S of weights."""

    def project(self, values: Tensor) -> Tensor:
        """The member of S that is nearest to the values (Frobenius norm), in their shape."""

    def mask(self, values: Tensor) -> Tensor:
        """0/1, broadcastable to the values: where their projection may be nonzero."""


class FewGroups(NamedTuple):
    """Weights whose fraction `ratio` of groups (single weights, filters, columns, channels) is zero."""

    structure: str
    ratio: float

    def project(self, values: Tensor) -> Tensor:
        return project(values, self.ratio, self.structure)

    def mask(self, values: Tensor) -> Tensor:
        return keep_mask(values, self.ratio, self.structure)


class FewLevels(NamedTuple):
    """Weights alpha Q, Q one of the levels where `kept`, else 0; alpha free, or a fixed `interval`."""

    levels: Levels
    kept: Tensor
    interval: Tensor | None = None

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, alpha) of the projection."""
        return encode(values, self.kept, self.levels, self.interval)

    def project(self, values: Tensor) -> Tensor:
        return scaled(*self.encode(values))

    def mask(self, values: Tensor) -> Tensor:
        return self.kept
