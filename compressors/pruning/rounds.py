"""ADMM's rounds: which stages there are, what each of them prunes and under which rho."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from sparsign.compressors.base import Recipe, Stage

COMBINED = "column_then_filter"


class PruneStep(NamedTuple):
    """One ADMM run and its retraining. `slack`: it keeps that many times the groups that stay in the end."""

    structure: str
    slack: float
    shares: int

    def ratio(self, final: float) -> float:
        """The fraction this step removes where `final` is removed in the end.

        Structures that share a ratio each keep the same root of what stays (our choice). The last layer, whose filters
        are the classes, has the step of columns alone, and so loses that step's share only.
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


class Rounds(NamedTuple):
    """The plan: every pruning step at every rho, then quantization at every rho, each followed by retraining.

    `freeze_rounds`: finetune stages more before the last, while weights are frozen on their levels bit by bit.
    """

    steps: list[PruneStep]
    rhos: list[float]
    quantized: bool
    freeze_rounds: int
    interval: int

    def stages(self) -> list[Stage]:
        kinds = ["pretrain"]
        for _ in self.steps:
            kinds += ["prune"] * len(self.rhos) + ["finetune"]
        if self.quantized:
            kinds += ["quantize"] * len(self.rhos) + ["finetune"] * (self.freeze_rounds + 1)
        return numbered(kinds)

    def recipe(self, stage: Stage) -> Recipe:
        """Lab code (CIFAR-10): SGD 0.1 cosine, then 0.01, restarted at every Z, U update in the ADMM stages.

        Its 160 epochs of ADMM are shared by the rhos, and the finetune of quantized weights is short: our choice. So is
        one schedule for both kinds of ADMM (its quantizers multiply rho by 1.2 or 1.5 at every update instead, up to 30
        or 100), and that all layers are quantized at once (arXiv 1903.09769: the first and last in a second step).
        """
        sgd = {"weight_decay": 1e-4, "nesterov": False}
        if stage.kind == "pretrain":
            return Recipe(epochs=200, lr=0.1, **sgd)
        if stage.kind in ("prune", "quantize"):
            epochs = max(160 // len(self.rhos), self.interval)
            return Recipe(epochs=epochs, lr=0.01, decay="cyclic", interval=self.interval, **sgd)
        snapped = self.since_quantized(stage) > 0
        return Recipe(epochs=20 if snapped else 200, lr=0.001 if snapped else 0.01, **sgd)

    def step(self, stage: Stage) -> PruneStep:
        """What a prune stage prunes."""
        return self.steps[(stage.round - 1) // len(self.rhos)]

    def rho(self, stage: Stage) -> float:
        """The rho that a prune or quantize stage starts with."""
        return self.rhos[(stage.round - 1) % len(self.rhos)]

    def at_last_rho(self, stage: Stage) -> bool:
        return stage.round % len(self.rhos) == 0

    def since_quantized(self, stage: Stage) -> int:
        """How many finetune stages after quantization this one is, from 1; 0 before, and for other stages."""
        return max(0, stage.round - len(self.steps)) if stage.kind == "finetune" else 0
