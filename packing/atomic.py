"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write through a temporary file in the same folder and a rename: readers see the old content or the new.

    Raises:
        OSError: the disk or a limit is full, a folder cannot be written to; one line that names the file and its size.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else memoryview(data)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = f"{error.strerror}: its {len(data):,} bytes could not be written; what was there is as it was"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        part.unlink(missing_ok=True)
