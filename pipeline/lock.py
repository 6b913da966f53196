"""One process at a time in a folder. The system drops the lock of a process that ends in whatever way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class InUseError(ValueError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: Path, what: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock file `path`, which is gone again afterwards; its folder is made where there is none.

    wait: is told, in one line, of the process that has to be waited for; None does not wait.

    Raises:
        InUseError: another process holds it and none waits; one line that names `what` and the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _lock(path, what, wait)
    try:
        file.truncate(0)
        os.pwrite(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        file.close()


def _lock(path: Path, what: str, wait: Callable[[str], None] | None) -> IO[bytes]:
    blocking = fcntl.LOCK_NB
    while True:
        file = open(path, "ab+")  # noqa: SIM115, the lock lasts as long as the open file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | blocking)
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                return file
        except FileNotFoundError:  # whoever held it before has removed the file that was opened here
            pass
        except BlockingIOError:
            file.seek(0)
            holder = f"{what} is in use by {file.read(200).decode(errors='replace') or 'another process'}: "
            if wait is None:
                file.close()
                raise InUseError(f"{holder}wait until it ends, or use another folder") from None
            wait(f"{holder}waiting until it is free")
            blocking = 0
        file.close()
