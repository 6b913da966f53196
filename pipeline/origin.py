"""Which code made a run: commit, uncommitted changes, and versions of what computes."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


@cache
def sources() -> str:
    """SHA-256 of the package's Python files: tells changed code apart, and installed code, which has no commit."""
    digest = hashlib.sha256()
    for path in sorted(p for package in ROOT.glob("*/__init__.py") for p in package.parent.rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
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
