"""Good files, files made to measure, and what comes of reading one."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.codecs import deflate, inflate
from sparsign.packing.dictionary import DICTIONARY
from sparsign.packing.file import MAGIC, PREAMBLE, VERSION, PackedFileError, loads

ROOT = Path(__file__).parents[2]
SEEDS = sorted((ROOT / "tests" / "golden").glob("*.sparsign"))
MEMORY = 4 << 30
"""Bytes of address space beyond what the process has when it opens a bomb."""

RUN_BYTES = 8 << 20
"""Activations of one image up to which an accepted file is run as well."""


def join(header: Any, payload: bytes = b"") -> bytes:
    """A file with a right checksum around any header."""
    return wrap(json.dumps(header, separators=(",", ":")).encode(), payload)


def wrap(text: bytes, payload: bytes = b"", inflated: int | None = None) -> bytes:
    """The same around any text."""
    deflated = deflate(text, DICTIONARY)
    size = len(text) if inflated is None else inflated
    return repaired(PREAMBLE.pack(MAGIC, VERSION, 0, len(deflated), size) + deflated + payload)


def repaired(data: bytes) -> bytes:
    """The same bytes with a right checksum."""
    return data[:10] + struct.pack("<I", zlib.crc32(data[14:], zlib.crc32(data[:10]))) + data[14:]


def split(data: bytes) -> tuple[Any, bytes]:
    """(header, sections) of a good file."""
    _, _, _, length, inflated = PREAMBLE.unpack_from(data)
    end = PREAMBLE.size + length
    return json.loads(inflate(data[PREAMBLE.size : end], inflated, DICTIONARY)), data[end:]


def apart(call: Callable[[], str]) -> dict[str, Any]:
    """What a call says in a process of its own under a memory limit, its seconds, and the MiB it took."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, started = _kilobytes("VmRSS"), time.perf_counter()
        try:
            said = call()
        except BaseException as error:  # whatever comes is the finding
            said = f"ESCAPED {type(error).__name__}: {error}"
        taken = (_kilobytes("VmHWM") - before) / 1024
        os.write(outlet, json.dumps({"said": said[:300], "s": time.perf_counter() - started, "MiB": taken}).encode())
        os._exit(0)
    os.close(outlet)
    with open(inlet, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else {"said": "ESCAPED the process died", "s": 0.0, "MiB": 0.0}


def _kilobytes(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def outcome(data: bytes) -> str:
    """`accepted`, where the network also ran on an image, or `refused: ` and the line; any other error goes through."""
    try:
        packed = loads(data)
    except PackedFileError as error:
        if "\n" in str(error):
            raise
        return f"refused: {error}"
    if packed.activation_bytes() < RUN_BYTES:
        ReferenceEngine(packed)(torch.zeros(1, *packed.input_shape))
    return "accepted"
