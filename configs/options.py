"""Options with a help line and an allowed range, declared once, where they are used."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import MISSING, field, fields
from typing import Any

STAGE_KINDS = ("pretrain", "prune", "quantize", "finetune")
"""What a stage of a schedule can be."""


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Iterable[Any] | None = None,
) -> Any:
    """A dataclass field that carries its help line and its allowed values (bounds or choices)."""
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": tuple(choices) if choices else None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def allowed(metadata: Any) -> str:
    """The allowed values of an option as a reader would write them: `[0, 1)` or `a | b`."""
    if metadata.get("choices"):
        return " | ".join(map(str, metadata["choices"]))
    low, high, above, below = (metadata.get(k) for k in ("ge", "le", "gt", "lt"))
    left = f"[{low:.10g}" if low is not None else f"({above:.10g}" if above is not None else "(-inf"
    right = f"{high:.10g}]" if high is not None else f"{below:.10g})" if below is not None else "inf)"
    return f"{left}, {right}"


def _inside(value: Any, metadata: Any) -> bool:
    if metadata.get("choices"):
        return value in metadata["choices"]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return not isinstance(value, str) or all(metadata.get(k) is None for k in ("ge", "gt", "le", "lt"))
    return (
        math.isfinite(value)
        and (metadata.get("ge") is None or value >= metadata["ge"])
        and (metadata.get("gt") is None or value > metadata["gt"])
        and (metadata.get("le") is None or value <= metadata["le"])
        and (metadata.get("lt") is None or value < metadata["lt"])
    )


def check(config: Any, prefix: str) -> None:
    """Raises ValueError with one line that names the option, its value and the allowed range.

    `config` is an instance of a dataclass whose fields were made by `option`; nested dataclasses are checked too.
    A list or mapping option is checked value by value; None is allowed where the default is None.
    """
    for f in fields(config):
        value, name = getattr(config, f.name), f"{prefix}.{f.name}" if prefix else f.name
        if hasattr(value, "__dataclass_fields__"):
            check(value, name)
            continue
        if not f.metadata or (value is None and f.default is None):
            continue
        if isinstance(value, dict):
            named = [(f"{name}.{key}", v) for key, v in value.items()]
        else:
            named = [(name, v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        for full, v in named:
            if not _inside(v, f.metadata):
                raise ValueError(f"{full}={v}: expected a value in {allowed(f.metadata)}")


def near_match(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` when a known word is near, else an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
