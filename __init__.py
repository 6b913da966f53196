"""Sparsign: networks whose weights are ternary or binary and structurally pruned, from training to one small file.

The folders of the repository are this package's subpackages (pyproject.toml maps it onto the repository's root).
Importing it is cheap: nothing below is loaded before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sparsign.kernels.module import PackedNetwork
    from sparsign.packing.limits import Limits


def load(
    file: str | Path, engine: str = "auto", isa: str = "", threads: int = 0, limits: Limits | None = None
) -> PackedNetwork:
    """A packed file as an `nn.Module` in eval mode: normalised fp32 images [N, C, H, W] -> logits [N, classes].

    Args:
        engine: `reference`, torch operations on any device; `native`, the compiled engine, on the CPU; `auto`, the
            compiled engine for images on the CPU and torch elsewhere; torch alone where the engine was not built or
            has no step for something, with a warning.
        isa: instruction set of the compiled engine by name; empty for the best there is.
        threads: over which the compiled engine splits a batch; 0 for torch's number.
        limits: what a file may ask for, where you know a large one: `packing.limits.Limits.at_most(decoded_mb=4000)`.

    Raises:
        FileNotFoundError: no such file. ValueError: a damaged file, or an argument outside its range.
    """
    from sparsign.kernels.module import load  # torch takes a second to import
    from sparsign.packing.limits import DEFAULT

    return load(file, engine, isa, threads, limits or DEFAULT)
