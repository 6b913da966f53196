"""Loading float weights that somebody released into one of our networks."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

SHOWN = 3  # how many offending names an error line carries


def load_pretrained(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the state dict in `path` into `model`.

    Takes a plain state dict or one under "state_dict"; drops the prefix "module." of data-parallel checkpoints and
    reads "linear." as "fc." where the network calls it so. BatchNorm's `num_batches_tracked` may be absent.

    Raises FileNotFoundError when there is no file; ValueError when it is no safe state dict, or when names or shapes
    differ from the network's. A classifier of another width is such a difference.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"model.pretrained={path}: there is no such file")
    state = _rename(_read_state(path), model)
    wanted = model.state_dict()
    absent = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in wanted]
    wrong = [
        f"{name} is {list(value.shape)}, expected {list(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    faults = [
        f"{label} {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for label, names in (("missing", absent), ("unknown", extra), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"model.pretrained={path} does not fit {type(model).__name__}: weights {'; '.join(faults)}")
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are damaged or hold more than tensors
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model.pretrained={path} is no readable weights file ({cause})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"model.pretrained={path} holds no state dict; expected names mapped to tensors")
    return content


def _rename(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if hasattr(model, "fc") and not hasattr(model, "linear"):
        state = {f"fc.{name[7:]}" if name.startswith("linear.") else name: value for name, value in state.items()}
    return state
