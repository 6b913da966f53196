"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write through a temporary file in the same folder and a rename: readers see the old content or the new.

    Raises:
        OSError: the disk or a limit is full, a folder cannot be written to; one line that names the file and its size.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else memoryview(data)
    try:
        with taking_its_place(path) as part, open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = f"{error.strerror}: its {len(data):,} bytes could not be written; what was there is as it was"
        raise OSError(error.errno, reason, str(path)) from None


@contextmanager
def taking_its_place(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, in a folder made where there is none; what is written there becomes `path`.

    Nothing is left of it where that fails. What SIGKILL leaves, the next writer in the folder removes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    _sweep(path.parent)
    part = path.with_name(f".{path.name}{_owner(os.getpid())}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _owner(pid: int | str) -> str:
    """How temporary names end: process ids mean something on one machine only."""
    return f".{platform.node()}-{pid}.part"


def _sweep(folder: Path) -> None:
    """Removes temporary files whose process, of this machine, is no more."""
    with suppress(OSError):  # a folder of somebody else's
        for name in (entry.name for entry in os.scandir(folder)):
            pid = name.removesuffix(".part").rpartition("-")[2]
            if name.startswith(".") and name.endswith(_owner(pid)) and pid.isdecimal() and not _lives(int(pid)):
                (folder / name).unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; no process id
        return True
    return True
