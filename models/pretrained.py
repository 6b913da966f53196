"""Loading float weights that somebody released, or that a run of ours trained, into one of our networks."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.models.cutting import cut

SHOWN = 3  # how many offending names an error line carries
PACKED = b"SPARSIGN"
"""How a packed file starts."""
UNDER = ("model", "net", "state_dict", "model_state_dict")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
TRANSFORM = re.compile(r"^(?P<tensor>.*parametrizations\.\w+)\.\d+\._extra_state$")
ORIGINAL = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.original$")


def weights_file(source: str | os.PathLike[str], option: str = "model.pretrained") -> Path:
    """The file that `source` means: itself, or the end of the pretrain stage where it is a run folder.

    Raises FileNotFoundError, one line that names the option.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "pretrain.ckpt"
        if not path.is_file():
            raise FileNotFoundError(f"{option}={source}: expected a run folder with {path.relative_to(source)} in it")
    if not path.is_file():
        raise FileNotFoundError(f"{option}={path}: there is no such file")
    return path


def load_pretrained(model: nn.Module, source: str | os.PathLike[str], option: str = "model.pretrained") -> None:
    """Copy the float weights in a file, or those of a run folder's pretrain stage, into `model`.

    A checkpoint of a later stage gives a pruned network: its masks are multiplied into the weights, and `model` is cut
    as it was. What its method held at zero is held no longer, but for channels that are gone or dead on both sides.

    Takes state dicts, plain or under "model", "net", "state_dict" or "model_state_dict", of any float type, also as
    safetensors; drops the prefixes "module.", "model.", "net." and "_orig_mod.", takes the latent weights of a run's
    checkpoint and reads "linear." as "fc." where the network calls it so. `num_batches_tracked` may be absent.

    Raises FileNotFoundError when there is no file; ValueError when it is damaged or no safe state dict, when names or
    shapes differ from the network's, values are not finite, complex, of another kind or negative variances, or weights
    go through more than masks.
    """
    path = weights_file(source, option)
    try:
        content = read_tensors(path)
        if isinstance(content, dict) and (kept := content.get("cut")) is not None:
            _check_kept(kept)
            cut(model, kept, trained=False)
        wanted = model.state_dict()
        state = _renamed(plain_names(_state(content)), model)
        _check_names(state, wanted, type(model).__name__)
        for name, value in state.items():
            _check_values(name, value, wanted[name])
    except ValueError as error:
        raise ValueError(f"{option}={source}: {error}") from None
    model.load_state_dict(state, strict=False)


def read_tensors(path: Path) -> Any:
    """What a checkpoint holds: plain containers and tensors, on the CPU. Nothing in the file is executed.

    Raises ValueError when the file is damaged (every part of torch's zip files has a checksum; a released file's name
    may end in the start of its SHA-256), or holds anything else.
    """
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ValueError("a .safetensors file needs the package safetensors: pip install safetensors") from None
        load = load_file
    else:
        load = _load_torch
    try:
        _check_digest(path)
        return load(path)
    except ValueError:
        raise
    except Exception as error:  # torch raises many kinds for files that are damaged or hold more than tensors
        if path.read_bytes().startswith(PACKED):
            raise ValueError("a packed file; expected a run folder, or weights that torch.save wrote") from None
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's own text advises to switch its guard off
            cause = "not what torch.save writes, or more in it than tensors and plain containers"
        raise ValueError(f"no readable weights file ({cause})") from error


def _load_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_digest(path: Path) -> None:
    named = re.search(r"-([0-9a-f]{8})$", path.stem)
    if named and re.search("[a-f]", named[1]) and hashlib.sha256(path.read_bytes()).hexdigest()[:8] != named[1]:
        raise ValueError(f"damaged: its SHA-256 does not start with {named[1]}, as its name says")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad:
            raise ValueError(f"damaged: the checksum of {bad} in it is wrong")


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Latent weights under the names of the bare network; masks, scales and duals of transforms are left out."""
    named = {ORIGINAL.sub(r"\1", name): value for name, value in state.items()}
    return {k: v for k, v in named.items() if "parametrizations." not in k and not k.endswith("_extra_state")}


def _state(content: Any) -> dict[str, Tensor]:
    stage = content.get("stage") if isinstance(content, dict) else None
    if isinstance(stage, str) and stage != "pretrain" and isinstance(content.get("model"), dict):
        content = {"model": _masked(content["model"], stage)}
    while isinstance(content, dict) and (inner := [k for k in UNDER if isinstance(content.get(k), dict)]):
        content = content[inner[0]]
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if not str(k).endswith("_extra_state")}
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError("holds no state dict; expected names mapped to tensors")
    return content


def _masked(state: dict[str, Any], stage: str) -> dict[str, Any]:
    """Latent weights times the masks that act on them."""
    masked = dict(state)
    for name, extra in state.items():
        found = TRANSFORM.match(name)
        if found and isinstance(extra, dict) and extra.get("active"):
            mask, original = state.get(name.replace("_extra_state", "mask")), f"{found['tensor']}.original"
            if not isinstance(mask, Tensor) or not isinstance(masked.get(original), Tensor):
                raise ValueError(
                    f"a run's checkpoint of stage {stage}: {original.removesuffix('.original')} goes through more than "
                    "masks, whose codes would be lost; expected a stage before them, or pretrain"
                )
            try:
                masked[original] = (masked[original] * mask).view_as(masked[original])
            except RuntimeError:
                shapes = f"{list(mask.shape)} beside {original} {list(masked[original].shape)}"
                raise ValueError(f"a run's checkpoint of stage {stage}: a mask {shapes}") from None
    return masked


def _check_kept(kept: Any) -> None:
    """What a checkpoint says is left of a cut network: names, each with the kept rows and columns."""
    fits = isinstance(kept, dict) and all(
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(isinstance(k, Tensor) and k.dtype == torch.int64 and k.dim() == 1 for k in pair)
        for pair in kept.values()
    )
    if not fits:
        raise ValueError("its entry cut: expected kept rows and columns, two int64 tensors a layer")


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    known = model.state_dict()
    renamed = {}
    for name, value in state.items():
        while name not in known and (prefix := next((p for p in PREFIXES if name.startswith(p)), None)):
            name = name.removeprefix(prefix)
        if name.startswith("linear.") and hasattr(model, "fc") and not hasattr(model, "linear"):
            name = f"fc.{name[7:]}"
        renamed[name] = value
    return renamed


def _check_names(state: dict[str, Tensor], wanted: dict[str, Tensor], network: str) -> None:
    absent = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in wanted]
    shared = [name for name in state if name in wanted]
    wrong = [
        f"{name} is {list(state[name].shape)}, expected {list(wanted[name].shape)}"
        for name in shared
        if state[name].shape != wanted[name].shape
    ]
    head = next((name for name in reversed(wanted) if wanted[name].dim() > 1), "")
    if wrong and not absent and not extra and all(line.startswith(head.rpartition(".")[0]) for line in wrong):
        raise ValueError(f"its head {'; '.join(wrong)}: another number of classes")
    faults = [
        f"{label} {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for label, names in (("missing", absent), ("unknown", extra), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"does not fit {network}: weights {'; '.join(faults)}")


def _check_values(name: str, value: Tensor, wanted: Tensor) -> None:
    if value.is_complex() or value.is_floating_point() != wanted.is_floating_point():
        kind = f"{wanted.dtype}".removeprefix("torch.")
        raise ValueError(f"{name} holds {f'{value.dtype}'.removeprefix('torch.')} numbers, expected {kind}")
    if not value.to(wanted.dtype).isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite numbers")
    if name.endswith("running_var") and (value < 0).any():
        raise ValueError(f"{name} holds negative variances")
