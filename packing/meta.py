"""What a packed file says besides the network: its schema. Names are registry names, never Python paths."""

from __future__ import annotations

from typing import Any

NONE = type(None)
NUMBER = (int, float)
SCHEMA: dict[str, tuple[type, ...]] = {
    "sparsign": (str,),
    "model.name": (str,),
    "model.form": (str,),
    "model.options": (dict,),
    "dataset.name": (str,),
    "dataset.options": (dict,),
    "dataset.class_names": (list,),
    "dataset.mean": (list,),
    "dataset.std": (list,),
    "compressor.name": (str,),
    "compressor.pfr": (*NUMBER, NONE),
    "compressor.pfr_unit": (str,),
    "compressor.group": (int,),
    "compressor.left": (int,),
    "seed": (int, NONE),
    "accuracy.val_top1": (*NUMBER, NONE),
    "accuracy.before_top1": (*NUMBER, NONE),
    "accuracy.float_top1": (*NUMBER, NONE),
    "accuracy.trained_top1": (*NUMBER, NONE),
    "original.parameters": (int,),
    "original.dropped": (list,),
    "proof.images": (int,),
    "proof.epsilon": NUMBER,
    "proof.close": (list,),
    "proof.predictions": (str,),
    "proof.first": (list,),
    "proof.bits": (str,),
    "proof.logits": (list,),
}
"""Every key, all of them optional, with its types. original: `parameters` of the uncut network, and `dropped`: [name,
full shape, coded] of layers of which nothing is left; proof: see `evaluation.proof`."""
LISTS: dict[str, tuple[type, ...]] = {
    "dataset.class_names": (str,),
    "dataset.mean": NUMBER,
    "dataset.std": NUMBER,
    "proof.close": (int,),
    "proof.first": (int,),
    "proof.logits": NUMBER,
}
OPTIONS = ("model.options", "dataset.options")
PARTS = {key.split(".")[0] for key in SCHEMA if "." in key}


def check_meta(meta: object) -> None:
    """ValueError, in one line, for a key that is unknown or a value of another type."""
    if not isinstance(meta, dict):
        raise ValueError("meta is not a JSON object")
    for part, value in meta.items():
        if part in PARTS:
            if not isinstance(value, dict):
                raise ValueError(f"meta.{part}: expected a JSON object")
            for key, inner in value.items():
                _check(f"{part}.{key}", inner)
        else:
            _check(str(part), value)
    for entry in meta.get("original", {}).get("dropped", []):
        if not _is_dropped(entry):
            raise ValueError(f"meta.original.dropped: {entry!r:.80}")


def _check(key: str, value: object) -> None:
    if key not in SCHEMA:
        raise ValueError(f"meta.{key:.80}: unknown key")
    if not _is(value, SCHEMA[key]) or (key in LISTS and not all(_is(v, LISTS[key]) for v in value)):
        raise ValueError(f"meta.{key}={value!r:.80}: expected {' or '.join(t.__name__ for t in SCHEMA[key])}")
    if key in OPTIONS and not all(_is(v, (str, int, float, bool, NONE)) for v in value.values()):
        raise ValueError(f"meta.{key}={value!r:.80}: expected plain values")


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _is_dropped(entry: object) -> bool:
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[2], bool)):
        return False
    shape = entry[1]
    return isinstance(shape, list) and len(shape) in (2, 4) and all(_is(n, (int,)) and 0 < n < 1 << 31 for n in shape)
