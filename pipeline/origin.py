"""Which code made a run: commit, uncommitted changes, and versions of what computes."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

ROOT = Path(__file__).parent.parent
PACKAGES = ("sparsign", "torch", "pytorch-lightning", "hydra-core", "numpy")


@cache
def code() -> dict[str, Any]:
    """`commit` (None outside a git checkout of ours), `dirty` (True with uncommitted code), and versions."""
    commit = dirty = None
    if (top := _git("rev-parse", "--show-toplevel")) and Path(top).resolve() == ROOT.resolve():
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
        dirty = bool(changed or _git("ls-files", "--others", "--exclude-standard", "--", "*.py"))
    return {"commit": commit, "dirty": dirty, "python": platform.python_version()} | {p: _version(p) for p in PACKAGES}


def code_of(config: DictConfig) -> dict[str, Any]:
    """`code()`, and for a network, data set or method of a plugin its package and the start of its sources' SHA-256."""
    packages = {config[group]._target_.split(".")[0] for group in ("compressor", "model", "dataset")}
    return code() | {f"plugin {name}": _plugin(name) for name in sorted(packages - {"sparsign"})}


@cache
def _plugin(name: str) -> str | None:
    spec = find_spec(name)
    places = spec.submodule_search_locations or [spec.origin] if spec else []
    return _digest([Path(place) for place in places if place])[:12] or None


@cache
def sources() -> str:
    """SHA-256 of the package's Python files: tells changed code apart, and installed code, which has no commit."""
    return _digest([package.parent for package in sorted(ROOT.glob("*/__init__.py"))])


def _digest(places: list[Path]) -> str:
    """Of Python files, and of all in folders: their names and contents."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(place.parent)).encode() + path.read_bytes())
    return digest.hexdigest()


def differences(present: dict[str, Any], former: dict[str, Any]) -> str:
    """`torch 2.11 then, 2.14 now; commit ...`: what of two `code()` differs, or an empty string."""
    keys = [k for k in present.keys() | former.keys() if present.get(k) != former.get(k)]
    return "; ".join(f"{k} {_short(former.get(k))} then, {_short(present.get(k))} now" for k in sorted(keys))


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
