"""One self-contained file per packed model, safe to load from a stranger; `packing/FORMAT.md` has every byte.

A preamble with a checksum of everything, a deflated JSON header, and the bytes of the arrays. No pickle, nothing is
executed or imported by name; every length, shape and number is checked against `Limits` before memory is taken for it.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

from sparsign.packing.atomic import write_atomic
from sparsign.packing.codecs import deflate, inflate
from sparsign.packing.dictionary import DICTIONARY
from sparsign.packing.limits import DEFAULT, Limits, allow_more
from sparsign.packing.reader import from_header
from sparsign.packing.spec import PackedModel
from sparsign.packing.writer import to_header

MAGIC = b"SPARSIGN"
VERSION = 2
VERSIONED = struct.Struct("<8sH")
PREAMBLE = struct.Struct("<8sHIII")
"""Magic, version, CRC-32 of all other bytes, bytes of the deflated header, bytes of the inflated one."""
CRC = slice(VERSIONED.size, VERSIONED.size + 4)


class PackedFileError(ValueError):
    """A file that is no packed model, or a damaged one."""


def write(packed: PackedModel, path: str | Path) -> int:
    """Write through a temporary file and a rename; returns the size in bytes. ValueError if `packed` is not valid."""
    packed.validate()
    data = dumps(packed)
    write_atomic(path, data)
    return len(data)


def read(path: str | Path, limits: Limits = DEFAULT) -> PackedModel:
    """The packed model in a file, validated and with its `bytes_on_disk`.

    Raises:
        FileNotFoundError: no such file.
        PackedFileError: anything wrong with its content, in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such packed model")
    try:
        return loads(path.read_bytes(), limits)
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None


def dumps(packed: PackedModel) -> bytes:
    """The file's bytes."""
    header, payload = to_header(packed)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    deflated = deflate(text, DICTIONARY)
    data = PREAMBLE.pack(MAGIC, VERSION, 0, len(deflated), len(text)) + deflated + payload
    return data[: CRC.start] + struct.pack("<I", _checksum(data)) + data[CRC.stop :]


def _checksum(data: bytes) -> int:
    return zlib.crc32(data[CRC.stop :], zlib.crc32(data[: CRC.start]))


def loads(data: bytes, limits: Limits = DEFAULT) -> PackedModel:
    """The packed model in a file's bytes. PackedFileError, in one line, for anything that is wrong with them."""
    try:
        return _loads(data, limits)
    except PackedFileError:
        raise
    except MemoryError:
        raise PackedFileError("asks for more memory than there is") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise PackedFileError(f"malformed packed model ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _loads(data: bytes, limits: Limits) -> PackedModel:
    if len(data) < VERSIONED.size or data[: len(MAGIC)] != MAGIC:
        raise PackedFileError(f"not a packed model: starts with {data[:8]!r}, expected {MAGIC!r} and a header")
    version = VERSIONED.unpack_from(data)[1]
    if version != VERSION:
        advice = "pack the run again" if version < VERSION else "a newer sparsign reads it"
        raise PackedFileError(f"version {version} of the format, expected {VERSION}: {advice}")
    if len(data) < PREAMBLE.size:
        raise PackedFileError("damaged or cut short: no header")
    _, _, checksum, length, inflated = PREAMBLE.unpack_from(data)
    if length > len(data) - PREAMBLE.size:
        raise PackedFileError(f"damaged or cut short: a header of {length} bytes in a file of {len(data)} bytes")
    if inflated > limits.header_bytes:
        asked = f"a header of {inflated} bytes, expected at most {limits.header_bytes}"
        raise PackedFileError(f"{asked}; {allow_more('header_mb', inflated)}")
    if checksum != _checksum(data):
        raise PackedFileError(f"damaged or cut short: checksum {_checksum(data):08x}, expected {checksum:08x}")
    end = PREAMBLE.size + length
    header = json.loads(inflate(data[PREAMBLE.size : end], inflated, DICTIONARY), parse_constant=_no_constant)
    return from_header(header, memoryview(data)[end:], limits, len(data))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} in the header")
