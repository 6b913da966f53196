"""Which pruning steps ADMM takes: progressive rounds, and columns before filters."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from sparsign.compressors.base import Stage

COMBINED = "column_then_filter"


class PruneStep(NamedTuple):
    """One ADMM run and its retraining. `slack`: it keeps that many times the groups that stay in the end."""

    structure: str
    slack: float
    shares: int

    def ratio(self, final: float) -> float:
        """The fraction this step removes where `final` is removed in the end.

        Structures that share a ratio each keep the same root of what stays (our choice).
        """
        return 1 - min(1.0, self.slack * (1 - final) ** (1 / self.shares))


def pruning_steps(structure: str, rounds: int) -> list[PruneStep]:
    """Every round keeps half of what the one before it kept (companion paper arXiv 1903.09769: about 2x a step)."""
    structures = ["column", "filter"] if structure == COMBINED else [structure]
    return [PruneStep(s, 2.0 ** (rounds - 1 - i), len(structures)) for s in structures for i in range(rounds)]


def numbered(kinds: list[str]) -> list[Stage]:
    """prune, finetune, prune -> the stages prune, finetune, prune-2."""
    seen: Counter[str] = Counter()
    stages = []
    for kind in kinds:
        seen[kind] += 1
        stages.append(Stage(kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"))
    return stages
